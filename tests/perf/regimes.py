# SPDX-License-Identifier: Apache-2.0
"""What the NICs can do."""

from __future__ import annotations

from dataclasses import dataclass

from .network import Network


@dataclass(frozen=True)
class Regime:
    """A NIC: `udp_tunnel` is segmentation of packets inside UDP tunnels, `tso` any in hardware."""

    name: str
    mtu: int
    udp_tunnel: bool
    tso: bool

    def apply(self, network: Network) -> None:
        """Sets the underlay devices of a network. All NICs merge what they receive (GRO)."""
        for host in network.hosts:
            host.offloads(tso=self.tso, gro=True, udp_tunnel=self.udp_tunnel and self.tso)


REGIMES = tuple(
    Regime(f"{name}, MTU {mtu}", mtu, udp_tunnel, tso)
    for mtu in (1500, 9000)
    for name, udp_tunnel, tso in (
        ("tunnel offload", True, True),
        ("no tunnel offload", False, True),
        ("no TSO", False, False),
    )
)
#: Where the workloads are measured that a NIC's segmentation means little to.
USUAL = REGIMES[0]
