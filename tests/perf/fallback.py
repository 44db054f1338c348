# SPDX-License-Identifier: Apache-2.0
"""TCP of a flow that stays in the fallback, next to plain VXLAN with its usual MTU.

`python -m tests.perf.fallback [ROUNDS]`: rounds of both in turn, medians. The containers on the xmasq
link have the underlay's MTU; the receiving host's fast path is off, so no flow ever gets a key.
"""

from __future__ import annotations

import statistics
import sys

from tests.lab import Lab, Overlay, routed_overlay, xmasq

SECONDS = 2.0


def gbit(overlay: Overlay) -> float:
    """Of a new TCP connection, its first half second included, in which its packets are fragmented."""
    a, b = overlay.containers
    for container in overlay.containers:
        container.run(["ip", "route", "flush", "cache"])
    report = a.iperf3(b, seconds=SECONDS)
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9


def measure(rounds: int) -> dict[str, list[float]]:
    """Gbit/s of each round."""
    found: dict[str, list[float]] = {"fallback": [], "vxlan": []}
    with Lab() as lab:
        hosts = lab.hosts(4)
        for host in hosts:
            host.offloads(udp_tunnel=False)
        overlays = {
            "fallback": routed_overlay(hosts[:2], kind="xmasq"),
            "vxlan": routed_overlay(hosts[2:], kind="vxlan"),
        }
        xmasq(hosts[1], "link", "set", "xm0", "fastpath", "off")
        for _ in range(rounds):
            for kind, overlay in overlays.items():
                found[kind].append(gbit(overlay))
    return found


def main() -> int:
    """Prints the medians and their ratio."""
    found = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
    medians = {kind: statistics.median(values) for kind, values in found.items()}
    for kind, values in found.items():
        print(f"{kind:9} {medians[kind]:6.2f} Gbit/s   ({min(values):.2f} to {max(values):.2f})")
    print(f"fallback / vxlan: {medians['fallback'] / medians['vxlan']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
