# SPDX-License-Identifier: Apache-2.0
"""STATUS: whether ADD would work now, and whether containers reach each other."""

from __future__ import annotations

from pyroute2 import IPRoute

from . import ipam, node, state
from .config import Network
from .errors import LIMITED_CONNECTIVITY, NOT_AVAILABLE, CniError
from .underlay import find_underlay


def run(network: Network) -> None:
    """Raises CniError with "not available" if ADD would fail, and with "limited connectivity" if it would
    work, but the link is not what it should be, or nobody keeps the peers up to date."""
    try:
        subnets = state.read_subnets(network)
        with IPRoute() as ipr:
            for subnet in subnets:
                find_underlay(ipr, network, subnet.version)
            wrong = list(node.complaints(ipr, network, subnets, missing_is_fine=True))
    except CniError as e:
        raise CniError(NOT_AVAILABLE, e.msg, e.details) from e
    try:
        ipam.delegate("STATUS", network, subnets)
    except CniError as e:
        if not ipam.lacks(e):
            raise CniError(NOT_AVAILABLE, e.msg, e.details) from e
    if wrong:
        raise CniError(LIMITED_CONNECTIVITY, wrong[0])
    if network.datastore is not None and not _agent_lives(network):
        raise CniError(
            LIMITED_CONNECTIVITY, "the agent is not running: what changes at other nodes is not followed"
        )


def _agent_lives(network: Network) -> bool:
    try:
        with state.locked(network, "agent", wait=False):
            return False
    except BlockingIOError:
        return True
