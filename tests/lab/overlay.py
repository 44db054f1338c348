# SPDX-License-Identifier: Apache-2.0
"""Container networks over several hosts, as CNI plugins make them: routed and bridged."""

from __future__ import annotations

import ipaddress
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from . import process
from .nodes import Container, Family, Host
from .process import LabError

Kind = Literal["xmasq", "vxlan", "native"]

#: What VXLAN adds to a packet: outer IPv4 or IPv6, UDP, VXLAN and the inner Ethernet header.
VXLAN_OVERHEAD: dict[int, int] = {4: 50, 6: 70}


@dataclass
class Overlay:
    """One container network. Hosts that it did not know at first can not be added later.

    ``kinds`` has one entry per host: a plain VXLAN host among xmasq ones is possible. ``link`` and
    ``bridge`` are the names of the interfaces on each host, ``mtu`` is the containers'. ``family`` is
    that of the VTEP addresses, ``inner`` that of the containers'.
    """

    hosts: list[Host]
    kinds: list[Kind]
    mode: Literal["routed", "bridged"]
    vni: int
    dstport: int
    link: str
    bridge: str
    wide: bool
    family: Family
    inner: Family
    mtu: int
    containers: list[Container] = field(default_factory=list)
    _numbers: dict[str, itertools.count[int]] = field(default_factory=dict)

    def base(self, host: Host) -> tuple[str, int]:
        """The first three numbers of a host's container addresses, and the first of the fourth."""
        return (f"10.244.{host.number}", 0) if self.wide else ("198.51.100", 16 * host.number)

    def subnet(self, host: Host) -> str:
        """The container subnet of a host: 198.51.100.<16n>/28, or 10.244.<n>.0/24 when ``wide``.

        IPv6: 2001:db8:64:<n>::/64.
        """
        if self.inner == 6:
            return f"2001:db8:64:{host.number:x}::/64"
        net, first = self.base(host)
        return f"{net}.{first}/{24 if self.wide else 28}"

    def link_address(self, host: Host) -> str:
        """The address of the link itself in the routed set-up: the subnet's first, as flannel has it."""
        if self.inner == 6:
            return f"2001:db8:64:{host.number:x}::1"
        net, first = self.base(host)
        return f"{net}.{first}"

    def container_address(self, host: Host, number: int) -> str:
        """The address of a host's container ``number``, which counts from 1."""
        if self.inner == 6:
            return f"2001:db8:64:{host.number:x}::{1 + number:x}"
        net, first = self.base(host)
        room = 253 if self.wide else 13
        if not 1 <= number <= room:
            raise LabError(
                f"container {number} of {host.name}: 1 to {room} are allowed (more with wide=True)"
            )
        return f"{net}.{first + 1 + number}"

    def lladdr(self, host: Host) -> str:
        """The MAC address of the link on a host."""
        return "02:00:" + bytes([*self.vni.to_bytes(3, "big"), host.number]).hex(":")

    def add_container(self, host: Host, *, ip: str = "", name: str = "", mac: str = "") -> Container:
        """A container on ``host``; by default with the next free address, a name and MAC made from it.

        So containers with the same address in two overlays have the same MAC address, too.
        """
        numbers = self._numbers.setdefault(host.name, itertools.count(1))
        ip = ip or self.container_address(host, next(numbers))
        raw = ipaddress.ip_address(ip).packed
        octets = raw if len(raw) == 4 else raw[5:8:2] + raw[14:]
        label = str(raw[3]) if len(raw) == 4 else f"{raw[7]:x}-{raw[15]:x}"
        container = host.add_container(
            name or f"{self.link}-{label}",
            ip,
            mode=self.mode,
            prefixlen=48 if self.inner == 6 else 16 if self.wide else 24,
            bridge=self.bridge,
            mtu=self.mtu,
            mac=mac or f"02:01:{octets.hex(':')}",
        )
        self.containers.append(container)
        return container

    def remove_container(self, container: Container) -> None:
        """Removes a container; its address can be given to another one, on any host if bridged."""
        container.host.remove_container(container.short)
        self.containers.remove(container)


def routed_overlay(
    hosts: Sequence[Host],
    kind: Kind | Sequence[Kind] = "xmasq",
    *,
    vni: int = 42,
    containers: int = 1,
    wide: bool = False,
    link: str = "xm0",
    dstport: int = 4789,
    options: Sequence[str] = (),
    family: Family | None = None,
    inner: Family | None = None,
    underlay: str | Sequence[str] = "eth0",
) -> Overlay:
    """A routed container network as flannel makes it, with ``containers`` on each host.

    For each other host, a host has a permanent neighbour, an FDB entry and an onlink route through
    ``link``; nothing is learned. ``native`` routes over the underlay, without a link. ``kind`` may be
    a list with one entry per host. ``options`` are more words for an xmasq ``link add``. ``family``:
    of the VTEP addresses, by default that of the hosts' ``address``; ``inner``: of the containers'
    addresses, by default the same. ``underlay``: the ``dev`` of xmasq links, one for all hosts or one for
    each; empty for none.
    """
    devs = [underlay] * len(hosts) if isinstance(underlay, str) else underlay
    overlay = _plan(hosts, kind, "routed", vni, dstport, link, "", wide, family, inner)
    for host, its_kind, dev in zip(overlay.hosts, overlay.kinds, devs, strict=True):
        others = [other for other in overlay.hosts if other is not host]
        if its_kind == "native":
            host.ip(
                *(
                    f"route add {overlay.subnet(other)} via {other.addresses[overlay.inner]}"
                    for other in others
                )
            )
            continue
        _make_link(overlay, host, its_kind, ["nolearning", *options], dev)
        length = "128 nodad" if overlay.inner == 6 else "32"
        lines = [f"addr add {overlay.link_address(host)}/{length} dev {link}", f"link set {link} up"]
        for other in others:
            via = overlay.link_address(other)
            lines.append(f"neigh add {via} lladdr {overlay.lladdr(other)} dev {link} nud permanent")
            lines.append(f"route add {overlay.subnet(other)} via {via} dev {link} onlink")
        host.ip(*lines)
        host.bridge(
            *(
                f"fdb append {overlay.lladdr(other)} dev {link} dst {other.addresses[overlay.family]}"
                " self permanent"
                for other in others
            )
        )
    _add_containers(overlay, containers)
    return overlay


def bridged_overlay(
    hosts: Sequence[Host],
    kind: Kind | Sequence[Kind] = "xmasq",
    *,
    vni: int = 42,
    containers: int = 1,
    wide: bool = False,
    link: str = "xm0",
    bridge: str = "br0",
    dstport: int = 4789,
    options: Sequence[str] = (),
    family: Family | None = None,
    inner: Family | None = None,
) -> Overlay:
    """One subnet over all hosts, with ``containers`` on each.

    On each host the link and the containers' veths are ports of ``bridge``. The link learns, and
    floods what it does not know to every other host (all-zero FDB entries). For ``native``, a second
    interface on the fabric takes the link's place. ``kind`` may be a list with one entry per host.
    ``options`` are more words for an xmasq ``link add``. ``family`` and ``inner`` as for
    :func:`routed_overlay`.
    """
    overlay = _plan(hosts, kind, "bridged", vni, dstport, link, bridge, wide, family, inner)
    for host, its_kind in zip(overlay.hosts, overlay.kinds, strict=True):
        if its_kind == "native":
            host.plug(link)
        else:
            _make_link(overlay, host, its_kind, options)
        host.ip(
            f"link add {bridge} mtu {overlay.mtu} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            f"link set {link} master {bridge}",
            f"link set {link} up",
            f"link set {bridge} up",
        )
        if its_kind != "native":
            host.bridge(
                *(
                    f"fdb append 00:00:00:00:00:00 dev {link} dst {other.addresses[overlay.family]}"
                    " self permanent"
                    for other in overlay.hosts
                    if other is not host
                )
            )
    _add_containers(overlay, containers)
    return overlay


def xmasq(
    host: Host | Container | None, *args: str, check: bool = True, timeout: float = 30.0
) -> process.Finished:
    """Runs the project's own command, ``xmasq -n NETNS ARGS``; without ``host``, without ``-n``."""
    where = ["-n", host.name] if host else []
    return process.run([sys.executable, "-m", "xmasq_link", *where, *args], check=check, timeout=timeout)


def xmasq_json(host: Host, *args: str) -> Any:
    """What ``xmasq -n NETNS -j ARGS`` prints, parsed."""
    return json.loads(xmasq(host, "-j", *args).stdout)


def _plan(
    hosts: Sequence[Host],
    kind: Kind | Sequence[Kind],
    mode: Literal["routed", "bridged"],
    vni: int,
    dstport: int,
    link: str,
    bridge: str,
    wide: bool,
    family: Family | None,
    inner: Family | None,
) -> Overlay:
    if family is None:
        family = 6 if ":" in hosts[0].address else 4
    kinds: list[Any] = [kind] * len(hosts) if isinstance(kind, str) else list(kind)
    if len(kinds) != len(hosts) or not set(kinds) <= {"xmasq", "vxlan", "native"}:
        raise LabError(
            f"kind {kind!r}: xmasq, vxlan and native are allowed, one for all hosts or one for each"
        )
    if "native" in kinds and len(set(kinds)) > 1:
        raise LabError("kind: native can not be mixed with a tunnel")
    if any(family not in host.addresses or (inner or family) not in host.addresses for host in hosts):
        raise LabError("family: IPv6 needs hosts that have it, ipv6=True or family=6")
    if not wide and any(host.number > 15 for host in hosts):
        raise LabError("more than 15 hosts need wide=True")
    mtu = min(host.mtu for host in hosts)
    if "vxlan" in kinds:
        mtu -= VXLAN_OVERHEAD[family]
    return Overlay(list(hosts), kinds, mode, vni, dstport, link, bridge, wide, family, inner or family, mtu)


def _make_link(overlay: Overlay, host: Host, kind: Kind, options: Sequence[str], dev: str = "eth0") -> None:
    words = ["id", str(overlay.vni), "local", host.addresses[overlay.family], "dstport", str(overlay.dstport)]
    begin = [overlay.link, "address", overlay.lladdr(host), "type"]
    if kind == "xmasq":
        xmasq(host, "link", "add", *begin, "xmasq", *words, *(["dev", dev] if dev else []), *options)
        if overlay.mtu != host.mtu:
            host.ip(f"link set {overlay.link} mtu {overlay.mtu}")
    else:
        learning = ["nolearning"] if overlay.mode == "routed" else []
        host.ip(" ".join(["link add mtu", str(overlay.mtu), *begin, "vxlan", *words, *learning]))


def _add_containers(overlay: Overlay, count: int) -> None:
    for host in overlay.hosts:
        for _ in range(count):
            overlay.add_container(host)
