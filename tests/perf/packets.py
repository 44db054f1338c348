# SPDX-License-Identifier: Apache-2.0
"""Small UDP packets, as many as will go: sockperf."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path

from tests.lab import LabError
from tests.lab.namespace import Namespace

from .network import Network
from .workload import Metric

PORT = 11112
#: Frames of 64 bytes, with the four that Ethernet adds at the end.
PAYLOAD = 18
RATE = Metric("packets", "1/s", "more", 0)
CPU = Metric("cpu", "µs/packet", "less", 2)


def udp_counters(where: Namespace) -> dict[str, int]:
    """The namespace's UDP counters (RFC 4113 names, /proc/net/snmp)."""
    text = where.inside(lambda: Path("/proc/thread-self/net/snmp").read_text())
    names, values = (line.split()[1:] for line in text.splitlines() if line.startswith("Udp:"))
    return dict(zip(names, map(int, values), strict=True))


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Packets:
    """64-byte frames from one socket, at full speed.

    Counted when they reach the server's UDP: veth carries a packet all the way to the receiver's
    socket on the CPU of its sender, so this is what the whole path costs, without the receiving program. CPU
    time is that of the sending process, which has all of the path in it, and nothing of what else runs.
    """

    name = "UDP, 64-byte frames"
    metrics = (RATE, CPU)

    def run(self, network: Network) -> Mapping[str, float]:
        """See Workload."""
        ends = ["-i", network.server.address, "-p", str(PORT)]
        network.serve("sockperf-udp", ["sockperf", "server", *ends], PORT, udp=True)
        sent, came = udp_counters(network.client), udp_counters(network.server)
        begin = _children()
        said = network.load(["sockperf", "throughput", "-m", str(PAYLOAD), "-t", "1", *ends])
        spent = _children() - begin
        sent_, came_ = udp_counters(network.client), udp_counters(network.server)
        out = sent_["OutDatagrams"] - sent["OutDatagrams"]
        arrived = sum(came_[name] - came[name] for name in ("InDatagrams", "RcvbufErrors"))
        rates = [line for line in said.splitlines() if "Message Rate is" in line]
        if not rates or not out or not arrived:
            raise LabError(f"sockperf: {said[-500:]}")
        rate = int(rates[0].split("Message Rate is")[1].split()[0])
        return {RATE.name: rate * arrived / out, CPU.name: spent * 1e6 / arrived}
