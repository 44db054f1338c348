# SPDX-License-Identifier: Apache-2.0
"""GC: takes away whatever is left of containers that the runtime does not know any more."""

from __future__ import annotations

from pyroute2 import IPRoute

from . import delete, ipam, record
from .config import TYPE, Network
from .errors import CniError, invalid
from .record import Attachment

#: The specification's name, and the one that libcni had first.
_KEYS = ("cni.dev/valid-attachments", "cni.dev/attachments")


def run(network: Network) -> None:
    """Cleans up after all attachments but the valid ones. Raises CniError, after having tried them all."""
    keep = _valid(network)
    failed: list[CniError] = []
    with IPRoute() as ipr:
        for stale in _known(ipr, network):
            if (stale.container, stale.ifname) not in keep:
                try:
                    delete.clean(ipr, network, stale)
                except CniError as e:
                    failed.append(e)
    if (network.raw.get("ipam") or {}).get("type"):
        try:
            ipam.delegate("GC", network, delete.subnets(network))
        except CniError as e:
            # Plugins older than version 1.1.0 of the specification: the addresses went by DEL, above.
            if not ipam.lacks(e):
                failed.append(e)
    if failed:
        raise failed[0]


def _valid(network: Network) -> set[tuple[str, str]]:
    for key in _KEYS:
        if key not in network.raw:
            continue
        try:
            return {(item["containerID"], item["ifname"]) for item in network.raw[key]}
        except (KeyError, TypeError):
            raise invalid(key, 'not a list of {"containerID": …, "ifname": …}') from None
    # Without it everything would go.
    raise invalid(_KEYS[0], "missing")


def _known(ipr: IPRoute, network: Network) -> list[Attachment]:
    """By our records, and by what the devices say of themselves."""
    found = {(one.container, one.ifname): one for one in record.every(network)}
    for msg in ipr.get_links(kind="veth"):
        words = (msg.get_attr("IFLA_IFALIAS") or "").split(" ")
        if len(words) == 4 and words[:2] == [TYPE, network.name]:
            one = Attachment(words[2], words[3])
            if one.veth(network) == msg.get_attr("IFLA_IFNAME"):
                found.setdefault((one.container, one.ifname), one)
    return list(found.values())
