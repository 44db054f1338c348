# SPDX-License-Identifier: Apache-2.0
"""The devices of the underlay that get hooks: all by which packets of a VTEP address leave or arrive."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pyroute2 import IPRoute

from kmod_ebpf import maps as m

from . import _device as _dev
from ._errors import InputError

_ARPHRD_ETHER = 1
_IFF_LOOPBACK = 0x8
#: What addresses are kept in.
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
#: Devices that hold an address and reach nobody, as lo does.
_NOWHERE = ("dummy",)
#: Devices whose ports have no routes of their own.
_SWITCHES = ("bridge", "bond", "team", "ovs-system")


def names_of(dev: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names in the argument `dev`: one, several with commas between them, or a sequence of them.

    Raises InputError.
    """
    if dev is None:
        return ()
    names = [name for one in ([dev] if isinstance(dev, str) else dev) for name in one.split(",")]
    if not names or not all(names):
        raise InputError("dev", f'"{dev}" is no list of devices such as eth0,eth1')
    if len(set(names)) > m.LINK_UNDERLAYS:
        raise InputError("dev", f"has {len(set(names))} devices, {m.LINK_UNDERLAYS} are allowed")
    return tuple(dict.fromkeys(names))


def indexes(link: Any) -> list[int]:
    """The devices of a link's underlay."""
    return [index for index in link.underlays if index]


def choose(ipr: IPRoute, local: IPAddress, names: Sequence[str]) -> list[Any]:
    """The devices that get the hooks for a VTEP address. Raises InputError.

    Those that are named; else those that own the address; if that is no device of a network (lo, dummy),
    those that routes with a gateway lead through.
    """
    family = socket.AF_INET if local.version == 4 else socket.AF_INET6
    owners = [
        a["index"]
        for a in ipr.get_addr(family=family)
        if ipaddress.ip_address(a.get_attr("IFA_LOCAL") or a.get_attr("IFA_ADDRESS")) == local
    ]
    if not owners:
        raise InputError("local", f"{local} is not an address of this host")
    if names:
        chosen = [_named(ipr, name) for name in names]
        hint = "Ethernet devices only"
    else:
        owning = [_at(ipr, index) for index in dict.fromkeys(owners)]
        chosen = [device for device in owning if not _reaches_nobody(device)]
        hint = "name the device that reaches the peers"
        if not chosen:
            chosen = [one for i in _gateway_devices(ipr, family) if _is_network(one := _at(ipr, i))]
        if not chosen:
            raise InputError(
                "dev", f"{local} is on {_name(owning[0])}, and no route leads to a gateway; {hint}"
            )
    for device in chosen:
        _check(ipr, device, hint)
    if len(chosen) > m.LINK_UNDERLAYS:
        raise InputError("dev", f"{len(chosen)} devices are possible: name up to {m.LINK_UNDERLAYS} of them")
    return chosen


def mtu(devices: Iterable[Any]) -> int:
    """What all of them can take."""
    return min(int(device.get_attr("IFLA_MTU")) for device in devices)


def _name(device: Any) -> str:
    return str(device.get_attr("IFLA_IFNAME"))


def _named(ipr: IPRoute, name: str) -> Any:
    device = _dev.find(ipr, name)
    if device is None:
        raise InputError("dev", f'there is no device "{name}"')
    return device


def _at(ipr: IPRoute, index: int) -> Any:
    return ipr.link("get", index=index)[0]


def _reaches_nobody(device: Any) -> bool:
    return bool(device["flags"] & _IFF_LOOPBACK) or _dev.kind(device) in _NOWHERE


def _is_network(device: Any) -> bool:
    return device["ifi_type"] == _ARPHRD_ETHER and _dev.kind(device) not in ("vxlan", "geneve", *_NOWHERE)


def _gateway_devices(ipr: IPRoute, family: int) -> Iterator[int]:
    """The devices of all routes that have a gateway, each once."""
    seen = set()
    for route in ipr.get_routes(family=family):
        hops = [(route.get_attr("RTA_GATEWAY") or route.get_attr("RTA_VIA"), route.get_attr("RTA_OIF"))]
        for hop in route.get_attr("RTA_MULTIPATH") or ():
            hops.append((hop.get_attr("RTA_GATEWAY") or hop.get_attr("RTA_VIA"), hop["oif"]))
        for gateway, index in hops:
            if gateway and index and index not in seen:
                seen.add(index)
                yield index


def _check(ipr: IPRoute, device: Any, hint: str) -> None:
    name = _name(device)
    if device["ifi_type"] != _ARPHRD_ETHER:
        raise InputError("dev", f"{name} has no Ethernet header and cannot carry encoded packets; {hint}")
    if _dev.kind(device) in _NOWHERE:
        kind = _dev.kind(device)
        raise InputError(
            "dev", f"{name} is a {kind} device: no packet leaves by it; name what reaches the peers"
        )
    index = device.get_attr("IFLA_MASTER")
    master = _at(ipr, index) if index else None
    if master is not None and _dev.kind(master) in _SWITCHES:
        raise InputError(
            "dev", f"{name} is a port of {_name(master)}, which packets arrive at: name {_name(master)}"
        )
