# SPDX-License-Identifier: Apache-2.0
"""How many packets of a new TCP connection take the fallback before the first encoded one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scapy.layers.inet import IP

from tests.lab import Lab, LabError, routed_overlay, tcp_transfer
from xmasq_link.dissect import classify

_SIZE = 300_000


def _fallback_first(packets: list[Any], source: str) -> int:
    """Fallback packets of a host before its first encoded one. Raises LabError if there is none."""
    kinds = [classify(packet) for packet in packets if IP in packet and packet[IP].src == source]
    if "encoded" not in kinds:
        raise LabError(f"nothing from {source} is encoded")
    return kinds[: kinds.index("encoded")].count("fallback")


def measure(rounds: int, say: Callable[[str], None]) -> list[tuple[int, int]]:
    """For each round, in new hosts that have never spoken: packets of the client, of the server."""
    found = []
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}: new connection")
        with Lab() as lab:
            hosts = lab.hosts(2)
            client, server = routed_overlay(hosts, "xmasq").containers
            hosts[0].ping(hosts[1], count=1)  # the hosts know each other's link layer address
            with hosts[0].ports[0].capture("ip") as capture:
                tcp_transfer(client, server, _SIZE)
                packets = capture.packets()
            found.append(tuple(_fallback_first(packets, host.address) for host in hosts))
    return [(client, server) for client, server in found]
