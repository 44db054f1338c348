# SPDX-License-Identifier: Apache-2.0
"""What those who only look have in common: one link, addresses as text, the order on a hook."""

from __future__ import annotations

import contextlib
import ipaddress
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kmod_ebpf import maps as m
from kmod_ebpf.loader import METADATA

from ._datapath import ARRIVE, ARRIVE_MD, ENCODE, ENCODE_MD, IN, OUT
from ._hooks import EGRESS, INGRESS, filters
from ._underlay import indexes

#: Programs of a capture (_capture.py) are guests, in front by intention.
GUEST = "xmshow"
HOOK_HINT = (
    "others have changed the tc or tcx programs there; a missing one comes back with xmasq link add or delete"
)


def address(raw: Any) -> str:
    """An IP address as text."""
    return str(ipaddress.ip_address(bytes(raw)))


def device_name(ipr: IPRoute, index: int | None) -> str:
    """A device's name, as well as it is known."""
    with contextlib.suppress(NetlinkError, IndexError):
        return str(ipr.link("get", index=index)[0].get_attr("IFLA_IFNAME"))
    return f"if{index}"


def on_hook(ipr: IPRoute, ifindex: int, parent: int) -> list[str]:
    """Names of the programs on a hook, in the order in which they run; guests are left out."""
    every = filters(ipr, ifindex, lambda name: not name.startswith(GUEST))
    return [f.name.replace("xmasq6_", "xmasq_") for f in every if f.parent == parent]


def hook_faults(ipr: IPRoute, link: Any) -> list[str]:
    """What is wrong with our programs on the hooks of a link and its underlay."""
    faults = []
    for ifindex, parent, program in (
        (link.ifindex, EGRESS, ENCODE),
        (link.ifindex, INGRESS, ARRIVE),
        *(
            (index, parent, name)
            for index in indexes(link)
            for parent, name in ((EGRESS, OUT), (INGRESS, IN))
        ),
    ):
        names = [name for name in on_hook(ipr, ifindex, parent) if name not in METADATA]
        where = device_name(ipr, ifindex)
        if program not in names:
            faults.append(f"{program} is missing on {where}")
        elif names[0] != program:
            faults.append(f'"{names[0]}" runs before {program} on {where}')
    if link.flags & m.LINK_EXTERNAL:
        for parent, program in ((EGRESS, ENCODE_MD), (INGRESS, ARRIVE_MD)):
            if on_hook(ipr, link.ifindex, parent)[:1] != [program]:
                faults.append(f"{program} is not the first on {device_name(ipr, link.ifindex)}")
    return faults
