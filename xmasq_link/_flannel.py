# SPDX-License-Identifier: Apache-2.0
"""flannel's `extension` backend: what a node does when it starts, and when another one comes or goes.

flannel (0.28.2 and later) runs commands without a shell and hands over what they need in the
environment. SubnetAdd and SubnetRemove get SUBNET and PUBLIC_IP of the other node. Its link's MAC
address is not among them, so that is made from PUBLIC_IP, in the way CNI plugins make one of an address.
The result is the same as with flannel's vxlan backend: a neighbour, an FDB entry and a route.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
from collections.abc import Mapping
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ._datapath import api, require_root
from ._device import find, kind
from ._errors import InputError, XmasqError
from ._flow import flush
from ._hold import LEASE_DEFAULT_MS
from ._link import create_link, delete_link, links
from ._model import Link
from ._netns import Netns

#: What flannel's vxlan backend has by default on Linux.
NAME, VNI, PORT = "flannel.1", 1, 8472
_PERMANENT, _SELF = 0x80, 0x02  # linux/neighbour.h
_AF_BRIDGE = 7
_MAC_PREFIX = b"\x0a\x58"


def lladdr(public_ip: ipaddress.IPv4Address) -> str:
    """The MAC address of a node's link."""
    return (_MAC_PREFIX + public_ip.packed).hex(":")


@api
def flannel_start(
    environment: Mapping[str, str],
    *,
    name: str = NAME,
    vni: int = VNI,
    port: int = PORT,
    dev: str | None = None,
    lease_ms: int = LEASE_DEFAULT_MS,
    secret: bytes | None = None,
    seg_bits: int | None = None,
    key_bits: int | None = None,
    netns: Netns | None = None,
) -> Link:
    """PostStartupCommand: makes this node's link, or finds it as it should be, and brings it up.

    environment: SUBNET and PUBLIC_IP of this node, from flannel. A device that has the name but is
    something else is deleted, as flannel does. The others are those of create_link.

    Raises InputError, XmasqError.
    """
    subnet, public_ip = _subnet(environment), _public_ip(environment)
    require_root()
    wanted: dict[str, Any] = {"vni": vni, "local": str(public_ip), "port": port, "lease_ms": lease_ms}
    link = _present(name)
    if link is not None and not _fits(link, wanted | {"address": lladdr(public_ip)}, dev, secret):
        _delete(name, link)
        link = None
    if link is None and (device := _device(name)) is not None:
        _delete_device(device)
    if link is None:
        create_link(
            name,
            **wanted,
            dev=dev,
            address=lladdr(public_ip),
            learning=False,
            secret=secret,
            seg_bits=seg_bits,
            key_bits=key_bits,
        )
    with IPRoute() as ipr:
        index = ipr.link_lookup(ifname=name)[0]
        _set_address(ipr, index, subnet.network_address)
        ipr.link("set", index=index, state="up")
    return links(name)[0]


@api
def flannel_add(environment: Mapping[str, str], *, name: str = NAME, netns: Netns | None = None) -> None:
    """SubnetAddCommand: another node has come, or its address has changed. Again is as good as once.

    environment: SUBNET and PUBLIC_IP of that node. Raises InputError, XmasqError.
    """
    subnet, public_ip = _subnet(environment), _public_ip(environment)
    require_root()
    with IPRoute() as ipr:
        index = _index(ipr, name)
        mac, gateway = lladdr(public_ip), str(subnet.network_address)
        _forget(ipr, index, gateway, keep=mac)
        ipr.neigh("replace", dst=gateway, lladdr=mac, ifindex=index, state=_PERMANENT)
        ipr.fdb("replace", ifindex=index, lladdr=mac, dst=str(public_ip), flags=_SELF, state=_PERMANENT)
        ipr.route("replace", dst=str(subnet), gateway=gateway, oif=index, flags=["onlink"])


@api
def flannel_remove(environment: Mapping[str, str], *, name: str = NAME, netns: Netns | None = None) -> None:
    """SubnetRemoveCommand: another node has gone. What is not there any more is passed over.

    environment: SUBNET and PUBLIC_IP of that node. Raises InputError, XmasqError.
    """
    subnet, public_ip = _subnet(environment), _public_ip(environment)
    require_root()
    with IPRoute() as ipr:
        index = _index(ipr, name)
        gateway = str(subnet.network_address)
        with _missing_is_fine():
            ipr.route("del", dst=str(subnet), gateway=gateway, oif=index)
        _forget(ipr, index, gateway)
    # What is encoded towards it would go on until half a lease has passed.
    with contextlib.suppress(XmasqError):
        flush(link=name, peer=str(public_ip))


def flannel_data() -> str:
    """What PreStartupCommand prints, for flannel to store with this node's lease: how it makes MACs.

    Other nodes get it on standard input. It is for people to read, and for later versions.
    """
    return json.dumps({"backend": "xmasq", "mac": "0a:58 and PUBLIC_IP"}, separators=(",", ":"))


def _value(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise InputError(name, "missing in the environment, where flannel puts it for this command")
    return value


def _subnet(environment: Mapping[str, str]) -> ipaddress.IPv4Network:
    text = _value(environment, "SUBNET")
    try:
        subnet = ipaddress.IPv4Network(text)
    except ValueError:
        raise InputError("SUBNET", f'"{text}" is no IPv4 subnet such as 10.244.1.0/24') from None
    if not 1 <= subnet.prefixlen <= 30:
        why = "flannel gives it to nodes without IPv4, and tells other nodes no IPv6 subnet"
        raise InputError("SUBNET", f"{text} is not the subnet of a node: {why}")
    return subnet


def _public_ip(environment: Mapping[str, str]) -> ipaddress.IPv4Address:
    text = _value(environment, "PUBLIC_IP")
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        raise InputError("PUBLIC_IP", f'"{text}" is no IPv4 address') from None
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        raise InputError("PUBLIC_IP", f"{text} is not the address of a node")
    return address


def _present(name: str) -> Link | None:
    return next((link for link in links() if link.name == name), None)


def _device(name: str) -> Any | None:
    with IPRoute() as ipr:
        return find(ipr, name)


def _fits(link: Link, wanted: Mapping[str, Any], dev: str | None, secret: bytes | None) -> bool:
    same = all(getattr(link, key) == value for key, value in wanted.items())
    return same and dev in (None, link.dev) and link.secret == (secret is not None)


def _delete(name: str, link: Link) -> None:
    if link.attached:
        from ._attach import detach_link

        detach_link(name)
        return
    delete_link(name)


def _delete_device(device: Any) -> None:
    if kind(device) != "vxlan":
        raise InputError("name", f'"{device.get_attr("IFLA_IFNAME")}" is a device of another kind')
    with IPRoute() as ipr:
        ipr.link("del", index=device["index"])


def _index(ipr: IPRoute, name: str) -> int:
    link = _present(name)
    if link is None:
        raise InputError("name", f'"{name}" is not an xmasq link; the PostStartupCommand makes it')
    return link.index


def _set_address(ipr: IPRoute, index: int, address: ipaddress.IPv4Address) -> None:
    """The only IPv4 address of the link, as flannel has it."""
    for msg in ipr.get_addr(index=index, family=2):
        if (msg.get_attr("IFA_ADDRESS"), msg["prefixlen"]) != (str(address), 32):
            ipr.addr("del", index=index, address=msg.get_attr("IFA_ADDRESS"), prefixlen=msg["prefixlen"])
    with contextlib.suppress(NetlinkError):
        ipr.addr("replace", index=index, address=str(address), prefixlen=32)


def _forget(ipr: IPRoute, index: int, gateway: str, keep: str = "") -> None:
    """Removes the neighbour of a node, and the FDB entry of its MAC address, unless that is kept."""
    for msg in ipr.get_neighbours(family=2, ifindex=index):
        mac = msg.get_attr("NDA_LLADDR")
        if msg.get_attr("NDA_DST") != gateway or mac is None or mac == keep:
            continue
        with _missing_is_fine():
            ipr.neigh("del", dst=gateway, lladdr=mac, ifindex=index)
        for entry in ipr.get_neighbours(family=_AF_BRIDGE, ifindex=index):
            if entry.get_attr("NDA_LLADDR") == mac and entry.get_attr("NDA_DST"):
                with _missing_is_fine():
                    ipr.fdb("del", ifindex=index, lladdr=mac, dst=entry.get_attr("NDA_DST"), flags=_SELF)


@contextlib.contextmanager
def _missing_is_fine() -> Any:
    try:
        yield
    except NetlinkError as e:
        if e.code not in (errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL):
            raise
