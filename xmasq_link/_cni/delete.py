# SPDX-License-Identifier: Apache-2.0
"""DEL: takes away what is there. That nothing is there any more is no error, whatever is missing."""

from __future__ import annotations

import ipaddress

from pyroute2 import IPRoute

from . import ipam, record, state, veth
from .config import Net, Network
from .errors import CniError
from .record import Attachment

#: A network for documentation: what host-local is told when nobody knows the node's subnets any more.
_ANY = ipaddress.ip_network("192.0.2.0/24")


def run(network: Network, attachment: Attachment) -> None:
    """Removes a container's interface and gives its addresses back. Raises CniError."""
    with IPRoute() as ipr:
        clean(ipr, network, attachment)


def clean(ipr: IPRoute, network: Network, attachment: Attachment) -> None:
    """The pair first: an address must not be given to another container while this one can use it."""
    veth.remove(ipr, attachment.veth(network))
    if (network.raw.get("ipam") or {}).get("type"):
        env = {
            "CNI_CONTAINERID": attachment.container,
            "CNI_IFNAME": attachment.ifname,
            "CNI_NETNS": attachment.netns,
        }
        ipam.delegate("DEL", network, subnets(network), attachment=env)
    record.remove(network, attachment)


def subnets(network: Network) -> tuple[Net, ...]:
    """As for ADD; if the agent's note is gone, any will do: addresses go by the container's id."""
    try:
        return state.read_subnets(network) or (_ANY,)
    except CniError:
        return network.cluster or (_ANY,)
