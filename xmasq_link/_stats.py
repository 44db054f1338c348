# SPDX-License-Identifier: Apache-2.0
"""A link's totals: what the datapath has counted, and what the vxlan device has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._model import Statistics, Traffic

_ETH_HLEN = 14
_FALLBACK = "fb_"


def statistics(device: Any, counters: Mapping[str, int]) -> Statistics:
    """device: the RTM_NEWLINK message. counters: of the datapath.

    Encoded and decoded packets pass the vxlan driver by, so its own counters are the fallback's. It
    counts without the Ethernet header (net/ipv4/ip_tunnel_core.c, iptunnel_xmit), which is added.
    """
    own = device.get_attr("IFLA_STATS64") or {}

    def fallback(side: str) -> Traffic:
        packets = own.get(f"{side}_packets", 0)
        return Traffic(packets, own.get(f"{side}_bytes", 0) + _ETH_HLEN * packets)

    return Statistics(
        rx_fast=Traffic(counters.get("decoded", 0), counters.get("decoded_bytes", 0)),
        rx_fallback=fallback("rx"),
        rx_errors=own.get("rx_errors", 0),
        rx_dropped=own.get("rx_dropped", 0),
        tx_fast=Traffic(counters.get("encoded", 0), counters.get("encoded_bytes", 0)),
        tx_fallback=fallback("tx"),
        tx_errors=own.get("tx_errors", 0),
        tx_dropped=own.get("tx_dropped", 0),
        fallback_reasons={
            name.removeprefix(_FALLBACK): value
            for name, value in counters.items()
            if name.startswith(_FALLBACK) and value
        },
    )
