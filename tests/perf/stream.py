# SPDX-License-Identifier: Apache-2.0
"""TCP streams: iperf3."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tests.lab import LabError

from .cpu import Meter
from .network import Network
from .workload import Metric

PORT = 5201
GBIT = Metric("throughput", "Gbit/s", "more")
CPU = Metric("cpu", "ms/GB", "less", 0)
CPU_CLIENT = Metric("cpu, sender", "ms/GB", "less", 0)
CPU_SERVER = Metric("cpu, receiver", "ms/GB", "less", 0)


class Stream:
    """So many TCP connections at a time, for a second, from the client to the server."""

    metrics = (GBIT, CPU, CPU_CLIENT, CPU_SERVER)

    def __init__(self, flows: int) -> None:
        self.flows = flows
        self.name = f"TCP stream, {flows} flow{'s' if flows > 1 else ''}"

    def run(self, network: Network) -> Mapping[str, float]:
        """See Workload."""
        network.serve("iperf3", ["iperf3", "-s", "-B", network.server.address, "-p", str(PORT)], PORT)
        meter = Meter()
        words = ["-c", network.server.address, "-p", str(PORT), "-t", "1", "-P", str(self.flows)]
        report = json.loads(network.load(["iperf3", "-J", "--connect-timeout", "5000", *words]))
        busy = meter.stop()
        if "error" in report:
            raise LabError(f"iperf3: {report['error']}")
        got = report["end"]["sum_received"]
        gigabytes = got["bytes"] / 1e9
        return {
            GBIT.name: got["bits_per_second"] / 1e9,
            CPU.name: busy.both * 1e3 / gigabytes,
            CPU_CLIENT.name: busy.client * 1e3 / gigabytes,
            CPU_SERVER.name: busy.server * 1e3 / gigabytes,
        }
