# SPDX-License-Identifier: Apache-2.0
"""The device that reaches the other nodes."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import config
from .config import Ip, Network
from .errors import TRY_AGAIN_LATER, CniError

if TYPE_CHECKING:
    from pyroute2 import IPRoute

AF = {config.IPV4: 2, config.IPV6: 10}
_SCOPE_GLOBAL = 0


@dataclass(frozen=True, slots=True)
class Underlay:
    """The device that reaches the other nodes, and this node's address on it: the VTEP address."""

    index: int
    name: str
    mtu: int
    address: Ip


def find_underlay(ipr: IPRoute, network: Network, family: int) -> Underlay:
    """The device and address that `underlay` names; by default those of the default route.

    Raises CniError with "try again later" for what is not there (yet): at boot that is normal.
    """
    addresses = [
        (msg["index"], ipaddress.ip_address(msg.get_attr("IFA_LOCAL") or msg.get_attr("IFA_ADDRESS")))
        for msg in ipr.get_addr(family=AF[family])
        if msg["scope"] == _SCOPE_GLOBAL
    ]
    want = network.underlay
    if want is None:
        index = _default_device(ipr, family)
    elif (asked := _as_address(want)) is not None:
        owner = next((i for i, a in addresses if a == asked), None)
        if owner is None:
            raise CniError(TRY_AGAIN_LATER, f"underlay: {want} is not an address of this node")
        return _underlay(ipr, owner, asked)
    else:
        found = ipr.link_lookup(ifname=want)
        if not found:
            raise CniError(TRY_AGAIN_LATER, f'underlay: there is no device "{want}"')
        index = found[0]
    address = next((a for i, a in addresses if i == index), None)
    if address is None:
        name = want or f"the device of the default route (index {index})"
        raise CniError(TRY_AGAIN_LATER, f"underlay: {name} has no IPv{family} address")
    return _underlay(ipr, index, address)


def _as_address(text: str) -> Ip | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _default_device(ipr: IPRoute, family: int) -> int:
    routes = [
        (msg.get_attr("RTA_PRIORITY") or 0, msg.get_attr("RTA_OIF"))
        for msg in ipr.get_default_routes(family=AF[family])
        if msg.get_attr("RTA_OIF")
    ]
    if not routes:
        raise CniError(
            TRY_AGAIN_LATER, f"underlay: not given, and this node has no IPv{family} default route"
        )
    return int(min(routes)[1])


def _underlay(ipr: IPRoute, index: int, address: Ip) -> Underlay:
    msg = ipr.link("get", index=index)[0]
    return Underlay(index, msg.get_attr("IFLA_IFNAME"), msg.get_attr("IFLA_MTU"), address)
