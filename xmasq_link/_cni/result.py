# SPDX-License-Identifier: Apache-2.0
"""ADD's result, as each version of the specification has it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

from .config import Network


def make(network: Network, interfaces: Sequence[dict[str, Any]], from_ipam: dict[str, Any]) -> dict[str, Any]:
    """The result: interfaces (the container's is the last), and what the IPAM plugin said."""
    new = network.version == "1.1.0"
    ips = []
    for ip in from_ipam.get("ips") or []:
        one = {key: ip[key] for key in ("address", "gateway") if ip.get(key)}
        if network.version == "0.4.0":
            one["version"] = str(ipaddress.ip_interface(ip["address"]).version)
        ips.append({**one, "interface": len(interfaces) - 1})
    made: dict[str, Any] = {
        "cniVersion": network.version,
        # "mtu" came with 1.1.0.
        "interfaces": [{k: v for k, v in item.items() if new or k != "mtu"} for item in interfaces],
        "ips": ips,
    }
    if from_ipam.get("routes"):
        made["routes"] = from_ipam["routes"]
    made["dns"] = from_ipam.get("dns") or network.raw.get("dns") or {}
    return made
