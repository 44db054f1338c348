# SPDX-License-Identifier: Apache-2.0
"""A container's interface: one end of a veth pair; the host routes the container's addresses to the other."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xmasq_link as api

from .._errors import InputError
from . import config
from .config import Ip, Network
from .errors import INVALID_ENVIRONMENT, REFUSED, UNKNOWN_CONTAINER, CniError
from .record import Attachment
from .routes import PROTO
from .underlay import AF

if TYPE_CHECKING:
    from pyroute2 import IPRoute

_IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 0x02, 0x200
_SCOPE_LINK = 253
#: The host's address towards containers where IPAM names none.
_GATEWAY = {config.IPV4: "169.254.1.1", config.IPV6: "fe80::1"}

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@contextlib.contextmanager
def inside(path: str) -> Iterator[IPRoute]:
    """Netlink within a container's namespace. Raises CniError if there is none at this path."""
    from pyroute2 import IPRoute

    if not os.path.exists(path):
        raise CniError(UNKNOWN_CONTAINER, f'CNI_NETNS: there is no network namespace "{path}"')
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(api.netns(path))
        except InputError as e:
            raise CniError(INVALID_ENVIRONMENT, f'CNI_NETNS: "{path}" is no network namespace') from e
        yield stack.enter_context(IPRoute())


def gateway(ip: dict[str, Any]) -> Ip:
    """The host's address that a container with this address of an IPAM result has as its gateway."""
    address = ipaddress.ip_interface(ip["address"])
    return ipaddress.ip_address(ip.get("gateway") or _GATEWAY[address.version])


def remove(ipr: IPRoute, name: str) -> bool:
    """Deletes a pair by the name of the host's end; returns whether there was one."""
    from pyroute2.netlink.exceptions import NetlinkError

    found = ipr.link_lookup(ifname=name)
    for index in found:
        try:
            ipr.link("del", index=index)
        except NetlinkError as e:
            if e.code != errno.ENODEV:
                raise
    return bool(found)


def create(
    ipr: IPRoute, network: Network, attachment: Attachment, mtu: int, mac: str | None
) -> list[dict[str, Any]]:
    """Makes the pair, both ends down; returns it as "interfaces" of a result: the host's end first."""
    from pyroute2.netlink.exceptions import NetlinkError

    host, own = attachment.veth(network), _random_mac()
    mac = mac or _random_mac()
    try:
        ipr.link(
            "add",
            ifname=host,
            kind="veth",
            mtu=mtu,
            # Given, since udev would change an address that the kernel made, after containers have learnt it.
            address=own,
            peer={"ifname": attachment.ifname, "net_ns_fd": attachment.netns, "mtu": mtu, "address": mac},
        )
    except NetlinkError as e:
        if e.code == errno.EEXIST:
            raise CniError(
                INVALID_ENVIRONMENT,
                f'CNI_IFNAME: the container has an interface "{attachment.ifname}" already',
            ) from e
        raise CniError(REFUSED, f"the kernel refuses the veth pair: {os.strerror(e.code)}") from e
    ipr.link("set", index=ipr.link_lookup(ifname=host)[0], ifalias=attachment.alias(network))
    return [
        {"name": host, "mac": own, "mtu": mtu},
        {"name": attachment.ifname, "mac": mac, "mtu": mtu, "sandbox": attachment.netns},
    ]


def configure_container(
    ipr: IPRoute, ifname: str, ips: Sequence[dict[str, Any]], routes: Sequence[dict[str, Any]]
) -> None:
    """Addresses and routes, all of them through the host. ipr: within the container."""
    index = ipr.link_lookup(ifname=ifname)[0]
    for lo in ipr.link_lookup(ifname="lo"):
        ipr.link("set", index=lo, state="up")
    if any(ipaddress.ip_interface(ip["address"]).version == config.IPV6 for ip in ips):
        _allow_ipv6(ifname)
    ipr.link("set", index=index, state="up")
    gateways: dict[int, str] = {}
    for ip in ips:
        address, via = ipaddress.ip_interface(ip["address"]), gateway(ip)
        # Without the route that an address brings along: neighbours in the subnet are behind the host, too.
        _add_address(ipr, index, address, _IFA_F_NOPREFIXROUTE)
        gateways.setdefault(address.version, str(via))
        common = {"family": AF[address.version], "oif": index}
        ipr.route("replace", dst=f"{via}/{via.max_prefixlen}", scope=_SCOPE_LINK, **common)
        if address.network.prefixlen < via.max_prefixlen:
            ipr.route("replace", dst=str(address.network), gateway=str(via), **common)
    for route in routes:
        net = ipaddress.ip_network(route["dst"], strict=False)
        via_text = route.get("gw") or gateways.get(net.version)
        if via_text is None:
            raise CniError(REFUSED, f"ipam: a route to {net}, but no address of that family")
        more: dict[str, Any] = {}
        if "priority" in route:
            more["priority"] = route["priority"]
        if "table" in route:
            more["table"] = route["table"]
        metrics = {word: route[word] for word in ("mtu", "advmss") if word in route}
        if metrics:
            more["metrics"] = metrics
        ipr.route(
            "replace", dst=str(net), gateway=via_text, family=AF[net.version], oif=index, flags=4, **more
        )


def _allow_ipv6(ifname: str) -> None:
    """Runtimes make namespaces with IPv6 off. /proc/sys/net is that of the thread's namespace."""
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6 refuses the address, and says so
        Path(f"/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6").write_text("0")


def configure_host(ipr: IPRoute, name: str, ips: Sequence[dict[str, Any]]) -> None:
    """The gateway addresses, and a route to each address of the container."""
    index = ipr.link_lookup(ifname=name)[0]
    ipr.link("set", index=index, state="up")
    for ip in ips:
        address, via = ipaddress.ip_interface(ip["address"]), gateway(ip)
        _add_address(ipr, index, ipaddress.ip_interface(f"{via}/{via.max_prefixlen}"), 0)
        ipr.route(
            "replace",
            family=AF[address.version],
            dst=f"{address.ip}/{address.max_prefixlen}",
            oif=index,
            scope=_SCOPE_LINK,
            proto=PROTO,
        )


def _add_address(ipr: IPRoute, index: int, address: Interface, flags: int) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    if address.version == config.IPV6:
        flags |= _IFA_F_NODAD
    try:
        ipr.addr(
            "add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen, IFA_FLAGS=flags
        )
    except NetlinkError as e:
        if e.code != errno.EEXIST:  # two addresses of one container with one gateway
            raise


def _random_mac() -> str:
    octets = bytearray(os.urandom(6))
    octets[0] = octets[0] & 0xFC | 2
    return octets.hex(":")
