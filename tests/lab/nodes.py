# SPDX-License-Identifier: Apache-2.0
"""Hosts, and the containers on them."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Literal

from .namespace import Namespace
from .process import LabError

if TYPE_CHECKING:
    from .core import Lab
    from .fabric import Port

#: The containers' default gateway in the routed set-up: the host's end of their veth, on every host.
GATEWAY = "169.254.1.1"
GATEWAY6 = "fe80::1"

#: Of an underlay, or of what is inside.
Family = Literal[4, 6]

ETH_P_IP = 0x0800
ETH_P_ARP = 0x0806

_NO_IPV6: dict[str, str | int] = {"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1}
#: Addresses are good at once, and nobody asks for routers.
_IPV6: dict[str, str | int] = {
    f"ipv6/conf/{which}/{name}": 0 for which in ("all", "default") for name in ("accept_dad", "accept_ra")
}


class Host(Namespace):
    """A host: forwards packets, and has ``eth0`` on the fabric with 192.0.2.<number>/24.

    ``number`` counts from 1. ``address`` is the underlay address, a VTEP address for a tunnel.
    With ``ipv6`` it also has 2001:db8::<number>/64, and that is ``address`` if ``family`` is 6.
    """

    def __init__(
        self, lab: Lab, number: int, *, mtu: int = 1500, ipv6: bool = False, family: Family = 4
    ) -> None:
        if not 1 <= number <= 254:
            raise LabError(f"host number {number}: 1 to 254 are allowed")
        super().__init__(lab, f"h{number}")
        self.number = number
        self.mtu = mtu
        ipv6 = ipv6 or family == 6
        #: By family; a VTEP address may be either.
        self.addresses: dict[int, str] = {4: f"192.0.2.{number}"}
        if ipv6:
            self.addresses[6] = f"2001:db8::{number:x}"
        self.address = self.addresses[family]
        self.containers: dict[str, Container] = {}
        values: dict[str, str | int] = {
            "ipv4/ip_forward": 1,
            "ipv4/conf/all/rp_filter": 0,
            "ipv4/conf/default/rp_filter": 0,
        }
        self.sysctl(values | ({"ipv6/conf/all/forwarding": 1, **_IPV6} if ipv6 else _NO_IPV6))
        self.ports: list[Port] = []
        self.plug("eth0", f"{self.addresses[4]}/24")
        if ipv6:
            self.ip(f"addr add {self.addresses[6]}/64 dev eth0 nodad")

    def plug(self, ifname: str, address: str = "", *, mtu: int | None = None) -> Port:
        """Joins a new interface to the fabric: a second NIC, or a bare one without ``address``."""
        port = self.lab.fabric.plug(self, ifname, mtu=mtu or self.mtu)
        self.ports.append(port)
        self.ip(
            "link set lo up",
            *([f"addr add {address} dev {ifname}"] if address else []),
            f"link set {ifname} up",
        )
        self.wait_for_carrier(ifname)
        port.fabric.wait_for_carrier(port.name)
        return port

    def offloads(
        self,
        *,
        tso: bool | None = None,
        gso: bool | None = None,
        gro: bool | None = None,
        tx: bool | None = None,
        udp_tunnel: bool | None = None,
        ifname: str = "eth0",
    ) -> None:
        """Makes ``eth0`` behave like a NIC with or without these offloads; None leaves one as it is.

        ``tso``/``gso`` off: packets are segmented before the wire. ``gro`` on: received segments are
        merged. ``tx`` off: checksums are computed in software, so captures show right ones.
        ``udp_tunnel``: segmentation of packets inside UDP tunnels.

        All but ``gro`` are set on the fabric's end, too: a packet could else arrive unsegmented, or
        without a checksum, from a host that still has the offload.
        """
        both: list[str] = []
        for feature, value in (("tx", tx), ("gso", gso), ("tso", tso)):
            if value is not None:
                both += [feature, "on" if value else "off"]
        if udp_tunnel is not None:
            for feature in ("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"):
                both += [feature, "on" if udp_tunnel else "off"]
        here = both + ([] if gro is None else ["gro", "on" if gro else "off"])
        port = next(port for port in self.ports if port.peer == ifname)
        if here:
            self.run(["ethtool", "-K", ifname, *here])
        if both:
            port.fabric.run(["ethtool", "-K", port.name, *both])

    def add_container(
        self,
        name: str,
        ip: str,
        *,
        mode: Literal["routed", "bridged"] = "routed",
        prefixlen: int = 24,
        bridge: str = "br0",
        mtu: int | None = None,
        mac: str = "",
    ) -> Container:
        """A container with the address ``ip`` on ``eth0``, of either family.

        ``routed``: the host has a route to the address alone, the container a default route to the
        host. ``bridged``: the host's end of the veth is a port of ``bridge``, which must exist, and
        the container's subnet has ``prefixlen`` bits. ``mtu`` is by default the host's; ``mac`` by
        default a random one. The host's end is called ``v-<name>``.
        """
        if mode not in ("routed", "bridged"):
            raise LabError(f"mode {mode!r}: routed and bridged are allowed")
        if not 1 <= len(name) <= 13:
            raise LabError(f"container name {name!r}: 1 to 13 characters are allowed")
        container = Container(self, name, ip)
        veth, mtu = f"v-{name}", mtu or self.mtu
        lladdr = f"address {mac}" if mac else ""
        lines = [
            f"link add {veth} mtu {mtu} type veth peer name eth0 mtu {mtu} {lladdr} netns {container.name}"
        ]
        if mode == "bridged":
            lines += [f"link set {veth} master {bridge}", f"link set {veth} up"]
            # Even with accept_dad 0, an IPv6 address without "nodad" is tentative until a worker has run.
            inside = [f"addr add {ip}/{prefixlen} dev eth0{' nodad' if ':' in ip else ''}"]
            routes = []
        elif ":" in ip:
            lines += [f"addr add {GATEWAY6}/64 dev {veth} nodad", f"link set {veth} up"]
            lines += [f"route add {ip}/128 dev {veth}"]
            inside = [f"addr add {ip}/128 dev eth0 nodad"]
            routes = [f"route add ::/0 via {GATEWAY6} dev eth0"]
        else:
            lines += [f"addr add {GATEWAY}/32 dev {veth}", f"link set {veth} up"]
            lines += [f"route add {ip}/32 dev {veth} src {self.addresses[4]}"]
            inside = [f"addr add {ip}/32 dev eth0"]
            routes = [f"route add default via {GATEWAY} dev eth0 onlink"]
        self.ip(*lines)
        container.ip("link set lo up", *inside, "link set eth0 up", *routes)
        container.wait_for_carrier("eth0")
        self.wait_for_carrier(veth)
        self.containers[name] = container
        return container

    def remove_container(self, name: str) -> None:
        """Removes a container, with its veth and the processes in it."""
        container = self.containers.pop(name)
        # The veth first: the kernel takes a namespace apart later, and the name must be free at once.
        self.ip(f"link del {container.veth}")
        self.lab.remove_namespace(container.role)


class Router(Namespace):
    """A router of the underlay, of both families: forwards, and sends no redirects."""

    def __init__(self, lab: Lab, number: int) -> None:
        super().__init__(lab, f"r{number}")
        self.addresses: dict[int, str] = {4: f"192.0.2.{200 + number}", 6: f"2001:db8::{200 + number:x}"}
        self.address = self.addresses[4]
        values: dict[str, str | int] = {
            "ipv4/ip_forward": 1,
            "ipv4/conf/all/send_redirects": 0,
            "ipv4/conf/default/send_redirects": 0,
            "ipv4/icmp_ratelimit": 0,
            "ipv6/conf/all/forwarding": 1,
            "ipv6/icmp/ratelimit": 0,
        }
        self.sysctl(values | _IPV6)
        self.ip("link set lo up")


class Container(Namespace):
    """A container on ``host``: has ``eth0`` with ``address``; ``veth`` is the host's end of it."""

    def __init__(self, host: Host, name: str, ip: str) -> None:
        super().__init__(host.lab, f"{host.role}-{name}")
        self.host = host
        self.short = name
        self.veth = f"v-{name}"
        self.address = ip
        ipv6 = _IPV6 if ":" in ip else _NO_IPV6
        self.sysctl({**ipv6, "ipv4/conf/all/rp_filter": 0, "ipv4/conf/default/rp_filter": 0})

    def announce(self) -> None:
        """Broadcasts a gratuitous ARP request, as CNI plugins do for a new or moved container.

        For an IPv6 address, an unsolicited neighbour advertisement to all nodes (RFC 4861, 7.2.6).
        """
        link = self.ip_json("link show eth0")[0]
        mac = bytes.fromhex(link["address"].replace(":", ""))
        if self.family == socket.AF_INET6:
            advert = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + socket.inet_pton(
                socket.AF_INET6, self.address
            )
            with self.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
                raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
                raw.sendto(advert + b"\2\1" + mac, ("ff02::1", 0, 0, link["ifindex"]))
            return
        ip = socket.inet_aton(self.address)
        broadcast = b"\xff" * 6
        arp = struct.pack("!HHBBH6s4s6s4s", 1, ETH_P_IP, 6, 4, 1, mac, ip, bytes(6), ip)
        with self.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            raw.send(broadcast + mac + struct.pack("!H", ETH_P_ARP) + arp)
