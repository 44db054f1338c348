# SPDX-License-Identifier: Apache-2.0
"""Other tunnels, where the kernel has them: ipip, geneve, wireguard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

from tests.lab import Host, Lab, LabError, process
from tests.lab.namespace import Namespace

#: What each adds to a packet: outer headers, and what encryption needs.
OVERHEAD = {"ipip": 20, "geneve": 50, "wireguard": 60}
_DEVICE = "tun0"
_PORT = 51820


def available() -> Iterator[str]:
    """Those that the kernel can make a device of."""
    with Lab() as lab:
        host = lab.host()
        for kind in OVERHEAD:
            if kind == "wireguard" and shutil.which("wg") is None:
                continue
            if not process.run(["ip", "-n", host.name, *_add(kind, host, host)], check=False).returncode:
                yield kind


def _add(kind: str, host: Host, peer: Host) -> list[str]:
    words = {
        "ipip": f"local {host.address} remote {peer.address}",
        "geneve": f"id 42 remote {peer.address}",
        "wireguard": "",
    }
    mtu = host.mtu - OVERHEAD[kind]
    return f"link add {_DEVICE} mtu {mtu} type {kind} {words[kind]}".split()


def _subnet(host: Host) -> str:
    return f"198.51.100.{16 * host.number}"


def join(hosts: list[Host], kind: str) -> list[Namespace]:
    """Joins two hosts by a tunnel; returns the container that each gets. Raises LabError."""
    one, two = hosts
    for host, peer in ((one, two), (two, one)):
        host.ip(
            " ".join(_add(kind, host, peer)),
            f"addr add {_subnet(host)}/32 dev {_DEVICE}",
            f"link set {_DEVICE} up",
        )
    if kind == "wireguard":
        _keys(one, two)
    for host, peer in ((one, two), (two, one)):
        via = f"via {_subnet(peer)} dev {_DEVICE} onlink" if kind == "geneve" else f"dev {_DEVICE}"
        host.ip(f"route add {_subnet(peer)}/28 {via}")
    return [
        host.add_container("c", f"198.51.100.{16 * host.number + 2}", mtu=host.mtu - OVERHEAD[kind])
        for host in hosts
    ]


def _keys(one: Host, two: Host) -> None:
    def wg(host: Host, *words: str, **kwargs: Any) -> str:
        return host.run(["wg", *words], **kwargs).stdout.strip()

    private = {host: wg(host, "genkey") for host in (one, two)}
    public = {host: wg(host, "pubkey", input=key + "\n") for host, key in private.items()}
    for host, peer in ((one, two), (two, one)):
        file = host.lab.tmp / f"{host.role}.key"
        file.touch(mode=0o600)
        file.write_text(private[host])
        wg(host, "set", _DEVICE, "listen-port", str(_PORT), "private-key", str(file))
        wg(
            host,
            *("set", _DEVICE, "peer", public[peer], "endpoint", f"{peer.address}:{_PORT}"),
            *("allowed-ips", f"{_subnet(peer)}/28"),
        )
        if not public[peer]:
            raise LabError("wg gives no key")
