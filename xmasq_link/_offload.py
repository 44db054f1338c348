# SPDX-License-Identifier: Apache-2.0
"""Offloads of an underlay device that would join packets with different keys."""

from __future__ import annotations

from pathlib import Path

from ._errors import InputError

_BTF = Path("/sys/kernel/btf/vmlinux")
_FEATURES = ("rx-udp-gro-forwarding", "rx-gro-list")


def gro_compares_ids() -> bool:
    """Whether this kernel's UDP GRO joins packets with consecutive or equal IDs only.

    It does since 6.10 (net/ipv4/udp_offload.c, udp_gro_receive_segment), where struct napi_gro_cb
    got the member ip_fixedid.
    """
    try:
        return b"\0ip_fixedid\0" in _BTF.read_bytes()
    except OSError:
        return False


def check(device: str) -> None:
    """Raises InputError if the device's GRO could deliver a datagram with another one's key."""
    if gro_compares_ids():
        return
    from pyroute2.ethtool.ethtool import Ethtool

    with Ethtool() as ethtool:
        features = ethtool.get_features(device).features
    for name in _FEATURES:
        if name in features and features[name].enable:
            raise InputError(
                "dev",
                f"{device} has {name} on, and this kernel would join datagrams of different flows: "
                f"turn it off (ethtool -K {device} {name} off)",
            )
