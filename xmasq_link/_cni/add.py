# SPDX-License-Identifier: Apache-2.0
"""ADD: the node's link if it is missing, an address, a veth pair. All of it, or nothing."""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from . import delete, ipam, node, record, result, routes, state, veth
from .config import Net, Network, within
from .errors import INVALID_CONFIG, INVALID_ENVIRONMENT, CniError
from .record import Attachment


def run(network: Network, attachment: Attachment) -> dict[str, Any]:
    """Sets a container's interface up; returns the result for the runtime. Raises CniError."""
    with veth.inside(attachment.netns) as inner:
        if inner.link_lookup(ifname=attachment.ifname) and not _is_ours_unfinished(network, attachment):
            raise CniError(
                INVALID_ENVIRONMENT,
                f'CNI_IFNAME: the container has an interface "{attachment.ifname}" already',
            )
    subnets = state.read_subnets(network)
    with IPRoute() as ipr, contextlib.ExitStack() as undo:
        if record.find(network, attachment):
            # An earlier ADD was ended in its middle, and nobody asked for DEL.
            delete.clean(ipr, network, attachment)
        veth.remove(ipr, attachment.veth(network))
        with state.locked(network):
            attached = node.attach(ipr, network, subnets, thorough=False)
            if network.datastore is None:
                for at in attached:
                    routes.reconcile(ipr, network, at, network.peers)
        record.write(network, attachment)
        undo.callback(_undo, ipr, network, attachment)
        answer = ipam.delegate("ADD", network, subnets)
        ips = answer.get("ips") or []
        _check_addresses(ips, subnets)
        families = {ipaddress.ip_interface(ip["address"]).version for ip in ips}
        mtu = min(at.mtu for at in attached if at.own.family in families)
        interfaces = veth.create(ipr, network, attachment, mtu, network.mac)
        with veth.inside(attachment.netns) as inner:
            veth.configure_container(inner, attachment.ifname, ips, answer.get("routes") or [])
        veth.configure_host(ipr, interfaces[0]["name"], ips)
        record.write(network, replace(attachment, done=True))
        undo.pop_all()
    return result.make(network, interfaces, answer)


def _is_ours_unfinished(network: Network, attachment: Attachment) -> bool:
    """Whether the interface in the container is what an interrupted ADD of ours left behind."""
    known = record.find(network, attachment)
    return bool(known and not known.done and Path(known.netns).exists())


def _undo(ipr: IPRoute, network: Network, attachment: Attachment) -> None:
    # What went wrong first is what the runtime is told; it will ask for DEL as well.
    with contextlib.suppress(Exception):
        delete.clean(ipr, network, attachment)


def _check_addresses(ips: list[dict[str, Any]], subnets: tuple[Net, ...]) -> None:
    """The other nodes send to this one what is for its subnets, and nothing else."""
    if not ips:
        raise CniError(INVALID_CONFIG, "ipam: the plugin gives no address")
    for ip in ips:
        net = ipaddress.ip_network(ipaddress.ip_interface(ip["address"]).ip)
        if not any(within(net, own) for own in subnets):
            raise CniError(
                INVALID_CONFIG,
                f"ipam: {net.network_address} is not within this node's {', '.join(map(str, subnets))}",
            )
