# SPDX-License-Identifier: Apache-2.0
"""The node's links in a network: made when missing, put right when wrong, left alone otherwise."""

from __future__ import annotations

import errno
import ipaddress
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xmasq_link as api

from .._errors import InputError, XmasqError
from . import config, masquerade
from .config import Endpoint, Ip, Net, Network
from .errors import IO_FAILURE, REFUSED, CniError, invalid
from .underlay import AF, Underlay, find_underlay

if TYPE_CHECKING:
    from pyroute2 import IPRoute

#: What VXLAN adds, by family of the underlay: IP, UDP, VXLAN and the inner Ethernet header.
OVERHEAD = {config.IPV4: 50, config.IPV6: 70}
_IFF_UP = 1


@dataclass(frozen=True, slots=True)
class Attached:
    """One address family of the network at this node.

    index, name: the device to the peers: the link, or the underlay where nothing is encapsulated.
    mtu: what containers get. own: what this node is to the others.
    """

    index: int
    name: str
    mtu: int
    own: Endpoint


def link_name(network: Network, family: int) -> str:
    """The link's name: that of the second family, IPv6, ends in "-6"."""
    return network.link if family == config.IPV4 else f"{network.link[:13]}-6"


def _alias(network: Network) -> str:
    """What our links say of themselves (IFLA_IFALIAS): whose they are, and what was made of them."""
    secret = " secret" if network.secret_file else ""
    return f"xmasq-cni {network.name} {network.encapsulation}{secret}"


def _is_ours(device: Any, network: Network) -> bool:
    return str(device.get_attr("IFLA_IFALIAS") or "").startswith(f"xmasq-cni {network.name} ")


def attach(
    ipr: IPRoute, network: Network, subnets: tuple[Net, ...], *, thorough: bool = True
) -> list[Attached]:
    """Makes the node's part of the network, or puts it right; call it with the lock held.

    Raises CniError. What is right stays as it is, so that no connection suffers. thorough: also look
    whether a link of ours still has its datapath, which takes longer than all the rest.
    """
    result = []
    secret = _secret(network)
    for subnet in subnets:
        family = subnet.version
        underlay = find_underlay(ipr, network, family)
        own = Endpoint(subnet, underlay.address, config.mac_of(underlay.address, network.vni))
        if network.encapsulation == "none":
            mtu = _mtu(network, underlay.mtu)
            result.append(Attached(underlay.index, underlay.name, mtu, own))
        else:
            overhead = OVERHEAD[family] if network.encapsulation == "vxlan" else 0
            mtu = _mtu(network, underlay.mtu - overhead)
            index = _ensure_link(ipr, network, underlay, own, mtu, secret, thorough)
            result.append(Attached(index, link_name(network, family), mtu, own))
        _forwarding(family)
    if network.ip_masq:
        masquerade.install(network, subnets)
    return result


def _secret(network: Network) -> bytes | None:
    if network.secret_file is None:
        return None
    from .._cli.secret import read_secret

    try:
        return read_secret(network.secret_file)
    except InputError as e:
        raise invalid("secretFile", str(e).partition(": ")[2]) from e


def _mtu(network: Network, most: int) -> int:
    if network.mtu is not None and network.mtu > most:
        raise invalid("mtu", f"{network.mtu} is more than the underlay leaves room for, {most}")
    return network.mtu or most


def _ensure_link(
    ipr: IPRoute,
    network: Network,
    underlay: Underlay,
    own: Endpoint,
    mtu: int,
    secret: bytes | None,
    thorough: bool,
) -> int:
    name = link_name(network, own.family)
    found = ipr.link_lookup(ifname=name)
    if found:
        device = ipr.link("get", index=found[0])[0]
        wrong = _unlike(device, network, own, thorough)
        if not wrong:
            own_address = _link_address(own)
            if device.get_attr("IFLA_MTU") != mtu or not device["flags"] & _IFF_UP:
                _set_link(ipr, network, found[0], name, mtu)
            if own_address not in _addresses(ipr, found[0], own.family):
                _add_address(ipr, found[0], own_address)
            return int(found[0])
        if not _is_ours(device, network):
            raise invalid("link", f'a device "{name}" exists, but {wrong}')
        # Ours, from before the node's address or the configuration changed.
        remove_link(ipr, name)
    _create(ipr, network, underlay, own, mtu, secret, name)
    index = int(ipr.link_lookup(ifname=name)[0])
    ipr.link("set", index=index, ifalias=_alias(network))
    _add_address(ipr, index, _link_address(own))
    ipr.link("set", index=index, state="up")
    return index


def _link_address(own: Endpoint) -> Ip:
    """The subnet's base address: what the node itself uses towards containers elsewhere, as flannel does."""
    return own.subnet.network_address


def _addresses(ipr: IPRoute, index: int, family: int) -> list[Ip]:
    return [
        ipaddress.ip_address(msg.get_attr("IFA_LOCAL") or msg.get_attr("IFA_ADDRESS"))
        for msg in ipr.get_addr(family=AF[family], index=index)
    ]


def _add_address(ipr: IPRoute, index: int, address: Ip) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        ipr.addr("add", index=index, address=str(address), prefixlen=address.max_prefixlen)
    except NetlinkError as e:
        if e.code != errno.EEXIST:
            raise


def _unlike(device: Any, network: Network, own: Endpoint, thorough: bool) -> str:
    """How a device differs from the link that is wanted; "" if it will do."""
    info = device.get_attr("IFLA_LINKINFO")
    if info is None or info.get_attr("IFLA_INFO_KIND") != "vxlan":
        return "is no vxlan device"
    data = info.get_attr("IFLA_INFO_DATA")
    local = data.get_attr("IFLA_VXLAN_LOCAL" if own.family == config.IPV4 else "IFLA_VXLAN_LOCAL6")
    port = data.get_attr("IFLA_VXLAN_PORT")
    for word, has, wants in (
        ("VNI", data.get_attr("IFLA_VXLAN_ID"), network.vni),
        ("local address", local and str(ipaddress.ip_address(local)), str(own.vtep)),
        ("port", port, network.port),
        ("link layer address", device.get_attr("IFLA_ADDRESS"), own.mac),
    ):
        if has != wants:
            return f"has {word} {has} instead of {wants}"
    if not thorough and device.get_attr("IFLA_IFALIAS") == _alias(network):
        return ""
    name = device.get_attr("IFLA_IFNAME")
    link = next((link for link in api.links() if link.name == name), None)
    if (link is not None) != (network.encapsulation == "xmasq"):
        return "is an xmasq link" if link else "is no xmasq link"
    if link is not None and link.secret != (network.secret_file is not None):
        return "has a shared secret" if link.secret else "has no shared secret"
    return ""


def complaints(
    ipr: IPRoute, network: Network, subnets: tuple[Net, ...], *, missing_is_fine: bool = False
) -> Iterator[str]:
    """What is wrong with the node's links. missing_is_fine: ADD would make them."""
    for subnet in subnets if network.encapsulation != "none" else ():
        name = link_name(network, subnet.version)
        found = ipr.link_lookup(ifname=name)
        if not found:
            if not missing_is_fine:
                yield f"the link {name} is missing"
            continue
        underlay = find_underlay(ipr, network, subnet.version)
        own = Endpoint(subnet, underlay.address, config.mac_of(underlay.address, network.vni))
        device = ipr.link("get", index=found[0])[0]
        if wrong := _unlike(device, network, own, thorough=True):
            yield f"the link {name} {wrong}"
        elif not device["flags"] & _IFF_UP:
            yield f"the link {name} is down"


def _create(
    ipr: IPRoute,
    network: Network,
    underlay: Underlay,
    own: Endpoint,
    mtu: int,
    secret: bytes | None,
    name: str,
) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        if network.encapsulation == "xmasq":
            api.create_link(
                name,
                vni=network.vni,
                local=str(own.vtep),
                dev=underlay.name,
                port=network.port,
                mtu=mtu,
                address=own.mac,
                learning=False,
                secret=secret,
            )
        else:
            local = "vxlan_local" if own.family == config.IPV4 else "vxlan_local6"
            ipr.link(
                "add",
                ifname=name,
                kind="vxlan",
                mtu=mtu,
                address=own.mac,
                vxlan_id=network.vni,
                vxlan_port=network.port,
                vxlan_learning=0,
                **{local: str(own.vtep)},
            )
    except InputError as e:
        raise invalid(e.argument, str(e).removeprefix(e.argument + ": ")) from e
    except XmasqError as e:
        raise CniError(REFUSED, str(e)) from e
    except NetlinkError as e:
        raise CniError(REFUSED, f"the kernel refuses the link {name}: {os.strerror(e.code)}") from e


def _set_link(ipr: IPRoute, network: Network, index: int, name: str, mtu: int) -> None:
    if network.encapsulation == "xmasq":
        try:
            api.set_link(name, mtu=mtu, up=True)
        except InputError as e:
            raise invalid(e.argument, str(e)) from e
    else:
        ipr.link("set", index=index, mtu=mtu, state="up")


def remove_link(ipr: IPRoute, name: str) -> None:
    """Deletes a link; if it is an xmasq link, so that its keys are taken back."""
    if any(link.name == name for link in api.links()):
        api.delete_link(name)
    else:
        for index in ipr.link_lookup(ifname=name):
            ipr.link("del", index=index)


def remove_ours(ipr: IPRoute, network: Network) -> None:
    """Deletes the links that were made for this network."""
    for family in (config.IPV4, config.IPV6):
        name = link_name(network, family)
        for index in ipr.link_lookup(ifname=name):
            if _is_ours(ipr.link("get", index=index)[0], network):
                remove_link(ipr, name)


def _forwarding(family: int) -> None:
    path = {
        config.IPV4: "/proc/sys/net/ipv4/ip_forward",
        config.IPV6: "/proc/sys/net/ipv6/conf/all/forwarding",
    }[family]
    try:
        with open(path, "r+") as f:
            if f.read().strip() != "1":
                f.seek(0)
                f.write("1")
    except OSError as e:
        raise CniError(IO_FAILURE, f"{path}: {e.strerror}") from e
