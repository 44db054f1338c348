# SPDX-License-Identifier: Apache-2.0
"""A link's counters as text, for `xmasq -s link show`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xmasq_link import Statistics, Traffic

#: Counters by what they are about; what has no place here is shown under "other".
_GROUPS: dict[str, tuple[str, ...]] = {
    "negotiation": (
        "announced",
        "offer_tx",
        "offer_rx",
        "accept_tx",
        "accept_rx",
        "confirm_tx",
        "confirm_rx",
        "not_owner",
        "untold",
        "no_room",
        "held",
        "exhausted",
        "moved",
        "too_big_tx",
    ),
    "bounces": (
        "bounce_tx",
        "bounce_rx",
        "restored",
        "stray",
        "path_off",
        "peer_gone",
        "icmp_rx",
        "icmp_refused",
    ),
    "defence": (
        "sanitised",
        "ctl_bad",
        "ctl_version",
        "ctl_path",
        "ctl_unsolicited",
        "ctl_nonce",
        "ctl_auth",
        "ctl_params",
        "ctl_conflict",
        "icmp_stray",
    ),
}
_FALLBACK = "fb_"
_ALONE = {"encoded", "encoded_bytes", "decoded", "decoded_bytes", "fallback", "bounced"}


def traffic_lines(traffic: Statistics | None) -> list[str]:
    """The totals, fast path and fallback together, one line for each direction."""
    if traffic is None:
        return []

    def line(name: str, all_: Traffic, fast: Traffic, slow: Traffic, errors: int, dropped: int) -> str:
        return (
            f"{name:<12} {all_.packets} packets, {all_.bytes} bytes: fast path {fast.packets} packets, "
            f"{fast.bytes} bytes; fallback {slow.packets} packets, {slow.bytes} bytes; "
            f"errors {errors}, dropped {dropped}"
        )

    t = traffic
    return [
        line("rx", t.rx, t.rx_fast, t.rx_fallback, t.rx_errors, t.rx_dropped),
        line("tx", t.tx, t.tx_fast, t.tx_fallback, t.tx_errors, t.tx_dropped),
    ]


def stats64(traffic: Statistics | None) -> dict[str, Any]:
    """The totals in the shape that `ip -s -j link show` has."""
    if traffic is None:
        return {}
    return {
        side: {
            "bytes": all_.bytes,
            "packets": all_.packets,
            "errors": errors,
            "dropped": dropped,
            "fast_bytes": fast.bytes,
            "fast_packets": fast.packets,
        }
        for side, all_, fast, errors, dropped in (
            ("rx", traffic.rx, traffic.rx_fast, traffic.rx_errors, traffic.rx_dropped),
            ("tx", traffic.tx, traffic.tx_fast, traffic.tx_errors, traffic.tx_dropped),
        )
    }


def counter_lines(stats: Mapping[str, int]) -> list[str]:
    """Counters, grouped; of most groups only those that are not 0."""

    def some(names: Sequence[str], cut: int = 0) -> str:
        return ", ".join(f"{n[cut:].replace('_', ' ')} {stats[n]}" for n in names if stats.get(n)) or "none"

    reasons = [name for name in stats if name.startswith(_FALLBACK)]
    lines = [
        f"{name:<12} {stats.get(name, 0)} packets, {stats.get(name + '_bytes', 0)} bytes"
        for name in ("encoded", "decoded")
    ]
    fallback = f"{'fallback':<12} {stats.get('fallback', 0)} packets"
    lines.append(fallback + (f": {some(reasons, len(_FALLBACK))}" if stats.get("fallback") else ""))
    lines += [f"{group:<12} {some(names)}" for group, names in _GROUPS.items()]
    placed = {*_ALONE, *reasons, *(name for names in _GROUPS.values() for name in names)}
    other = [name for name in stats if name not in placed and stats[name]]
    if other:
        lines.append(f"{'other':<12} {some(other)}")
    return lines
