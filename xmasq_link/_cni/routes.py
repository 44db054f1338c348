# SPDX-License-Identifier: Apache-2.0
"""The peers in the kernel: a route, a neighbour and an FDB entry for each, as flannel has them.

The kernel is the database: what is there is compared with what should be, and the difference is made.
Ours are, of routes, those with our protocol number on our device (and in the network, where nothing
is encapsulated and the device is everybody's); of neighbours and FDB entries, all permanent ones on the link.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import xmasq_link as api

from .._errors import XmasqError
from . import config
from .config import Endpoint, Net, Network, within
from .node import Attached
from .underlay import AF

if TYPE_CHECKING:
    from pyroute2 import IPRoute

#: rtm_protocol of our routes (`ip route show proto 120`): 'x'. Not in iproute2's rt_protos.
PROTO = 120
_AF_BRIDGE = 7
_TABLE_MAIN = 254
_NUD_PERMANENT, _NUD_NOARP = 0x80, 0x40
_NTF_SELF = 2
_ONLINK = 4


def reconcile(ipr: IPRoute, network: Network, at: Attached, peers: Collection[Endpoint]) -> list[str]:
    """Makes the kernel have these peers, and no others of ours; returns what was changed, for the log.

    Only the difference is made: what is right is not touched. First what a peer needs, then what
    leads to it; and the other way round when it goes.
    """
    peers = [peer for peer in peers if peer.family == at.own.family and peer.vtep != at.own.vtep]
    done: list[str] = []
    gone: set[str] = set()
    if network.encapsulation != "none":
        _fdb(ipr, at, peers, done, gone, removing=False)
        _neighbours(ipr, at, peers, done, removing=False)
    _routes(ipr, network, at, peers, done)
    if network.encapsulation != "none":
        _neighbours(ipr, at, peers, done, removing=True)
        _fdb(ipr, at, peers, done, gone, removing=True)
    if network.encapsulation == "xmasq":
        for vtep in gone:
            # What is encoded towards it would go on until half a lease has passed.
            with contextlib.suppress(XmasqError):
                api.flush(link=at.name, peer=vtep)
    return done


def _fdb(
    ipr: IPRoute,
    at: Attached,
    peers: Collection[Endpoint],
    done: list[str],
    gone: set[str],
    *,
    removing: bool,
) -> None:
    want = {peer.mac: str(peer.vtep) for peer in peers}
    have: dict[str, set[str]] = {}
    for msg in ipr.fdb("dump", ifindex=at.index):
        mac, dst = msg.get_attr("NDA_LLADDR"), msg.get_attr("NDA_DST")
        if msg["ifindex"] == at.index and dst and msg["state"] & _NUD_PERMANENT:
            have.setdefault(mac, set()).add(str(ipaddress.ip_address(dst)))
    entry: dict[str, Any] = {
        "family": _AF_BRIDGE,
        "ifindex": at.index,
        "state": _NUD_NOARP | _NUD_PERMANENT,
        "flags": _NTF_SELF,
    }
    if removing:
        for mac, dsts in have.items():
            for dst in dsts - {want.get(mac)}:
                with _absent_is_fine():
                    ipr.neigh("del", lladdr=mac, dst=dst, **entry)
                gone.add(dst)
                done.append(f"fdb - {mac} {dst}")
        return
    for mac, dst in want.items():
        if have.get(mac) != {dst}:
            # Replacing moves the entry in one step; it is refused for one that has several destinations.
            if len(have.get(mac, ())) > 1:
                for old in have[mac] - {dst}:
                    with _absent_is_fine():
                        ipr.neigh("del", lladdr=mac, dst=old, **entry)
            gone |= have.get(mac, set()) - {dst}
            ipr.neigh("replace", lladdr=mac, dst=dst, **entry)
            done.append(f"fdb + {mac} {dst}")


def _neighbours(
    ipr: IPRoute, at: Attached, peers: Collection[Endpoint], done: list[str], *, removing: bool
) -> None:
    family = AF[at.own.family]
    want = {str(peer.subnet.network_address): peer.mac for peer in peers}
    have = {
        str(ipaddress.ip_address(msg.get_attr("NDA_DST"))): msg.get_attr("NDA_LLADDR")
        for msg in ipr.get_neighbours(family=family, ifindex=at.index)
        if msg["ifindex"] == at.index and msg["state"] & _NUD_PERMANENT
    }
    if removing:
        for dst in have.keys() - want.keys():
            with _absent_is_fine():
                ipr.neigh("del", family=family, dst=dst, ifindex=at.index)
            done.append(f"neighbour - {dst}")
        return
    for dst, mac in want.items():
        if have.get(dst) != mac:
            ipr.neigh("replace", family=family, dst=dst, lladdr=mac, ifindex=at.index, state=_NUD_PERMANENT)
            done.append(f"neighbour + {dst} {mac}")


def _routes(
    ipr: IPRoute, network: Network, at: Attached, peers: Collection[Endpoint], done: list[str]
) -> None:
    family = AF[at.own.family]
    plain = network.encapsulation == "none"
    want = {peer.subnet: str(peer.vtep if plain else peer.subnet.network_address) for peer in peers}
    have = {}
    for msg in ipr.get_routes(family=family, table=_TABLE_MAIN, proto=PROTO):
        if msg["proto"] != PROTO or msg.get_attr("RTA_OIF") != at.index:
            continue
        net = _net(msg, at.own.family)
        if not plain or any(within(net, whole) for whole in network.cluster):
            have[net] = msg.get_attr("RTA_GATEWAY")
    common: dict[str, Any] = {"family": family, "oif": at.index, "proto": PROTO, "table": _TABLE_MAIN}
    for net, gateway in want.items():
        if have.get(net) != gateway:
            # The link's neighbours are not within any of its networks, hence onlink, as flannel has it.
            flags = 0 if plain else _ONLINK
            ipr.route("replace", dst=str(net), gateway=gateway, flags=flags, **common)
            done.append(f"route + {net} via {gateway}")
    for net in have.keys() - want.keys():
        with _absent_is_fine():
            ipr.route("del", dst=str(net), **common)
        done.append(f"route - {net}")


def _net(msg: Any, family: int) -> Net:
    base = msg.get_attr("RTA_DST") or ("0.0.0.0" if family == config.IPV4 else "::")
    return ipaddress.ip_network(f"{base}/{msg['dst_len']}")


@contextlib.contextmanager
def _absent_is_fine() -> Any:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as e:
        if e.code not in (errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL):
            raise
