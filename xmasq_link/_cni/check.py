# SPDX-License-Identifier: Apache-2.0
"""CHECK: whether what ADD made is still there, as its result says. Changes nothing."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from pyroute2 import IPRoute

from . import ipam, node, state, veth
from .config import Net, Network
from .errors import INVALID_CONFIG, NOT_AS_EXPECTED, CniError, invalid
from .record import Attachment
from .underlay import AF

_IFF_UP = 1


def run(network: Network, attachment: Attachment) -> None:
    """Raises CniError for the first thing that is not as it should be."""
    before = network.raw.get("prevResult")
    if not isinstance(before, dict):
        raise CniError(INVALID_CONFIG, "prevResult: missing; CHECK needs the result of ADD")
    try:
        ips = [(ipaddress.ip_interface(ip["address"]), ip) for ip in before.get("ips") or []]
        nets = [ipaddress.ip_network(route["dst"], strict=False) for route in before.get("routes") or []]
        macs = {
            item["name"]: item.get("mac") for item in before.get("interfaces") or [] if item.get("sandbox")
        }
    except (KeyError, TypeError, ValueError) as e:
        raise invalid("prevResult", f"not a result: {e}") from e
    if attachment.ifname not in macs:
        raise invalid("prevResult", f'names no interface "{attachment.ifname}" of a container')
    subnets = state.read_subnets(network)
    with IPRoute() as ipr:
        for wrong in _host(ipr, network, attachment, ips, subnets):
            raise CniError(NOT_AS_EXPECTED, wrong)
    with veth.inside(attachment.netns) as inner:
        for wrong in _container(inner, attachment.ifname, macs[attachment.ifname], ips, nets):
            raise CniError(NOT_AS_EXPECTED, f"in the container: {wrong}")
    ipam.delegate("CHECK", network, subnets)


def _host(
    ipr: IPRoute,
    network: Network,
    attachment: Attachment,
    ips: list[tuple[veth.Interface, dict[str, Any]]],
    subnets: tuple[Net, ...],
) -> Iterator[str]:
    yield from node.complaints(ipr, network, subnets)
    name = attachment.veth(network)
    index = _up(ipr, name)
    if index is None:
        yield f"{name}, the host's end of the veth pair, is missing or down"
        return
    for address, _ in ips:
        if not _routes(ipr, index, ipaddress.ip_network(address.ip)):
            yield f"there is no route to {address.ip} through {name}"


def _routes(ipr: IPRoute, index: int, net: Net) -> list[Any]:
    """The routes to exactly this network through a device."""
    return [
        msg
        for msg in ipr.get_routes(family=AF[net.version], oif=index)
        if msg["dst_len"] == net.prefixlen
        and (not net.prefixlen or msg.get_attr("RTA_DST") == str(net.network_address))
    ]


def _container(
    ipr: IPRoute,
    name: str,
    mac: str | None,
    ips: list[tuple[veth.Interface, dict[str, Any]]],
    nets: list[Net],
) -> Iterator[str]:
    index = _up(ipr, name)
    if index is None:
        yield f"{name} is missing or down"
        return
    has = ipr.link("get", index=index)[0].get_attr("IFLA_ADDRESS")
    if mac and has != mac.lower():
        yield f"{name} has link layer address {has} instead of {mac}"
    addresses = {
        (ipaddress.ip_address(msg.get_attr("IFA_ADDRESS")), msg["prefixlen"])
        for msg in ipr.get_addr(index=index)
    }
    for address, _ in ips:
        if (address.ip, address.network.prefixlen) not in addresses:
            yield f"{name} lacks the address {address}"
    for net in nets:
        if not _routes(ipr, index, net):
            yield f"there is no route to {net} through {name}"


def _up(ipr: IPRoute, name: str) -> int | None:
    """The index of a device that is there and up."""
    for index in ipr.link_lookup(ifname=name):
        if ipr.link("get", index=index)[0]["flags"] & _IFF_UP:
            return int(index)
    return None
