# SPDX-License-Identifier: Apache-2.0
"""Redis, measured by its own benchmark."""

from __future__ import annotations

import csv
from collections.abc import Mapping

from tests.lab import LabError

from .cpu import Meter
from .network import Network
from .workload import Metric

PORT = 6379
REQUESTS = 40_000
RATE = Metric("requests", "1/s", "more", 0)
P99 = Metric("p99", "ms", "less", 2)
CPU = Metric("cpu", "µs/request", "less", 1)


class Redis:
    """GET of 64 bytes by 16 clients, each with one request at a time."""

    name = "Redis GET"
    metrics = (RATE, P99, CPU)

    def run(self, network: Network) -> Mapping[str, float]:
        """See Workload."""
        address = network.server.address
        words = f"--bind {address} --port {PORT} --protected-mode no --appendonly no --daemonize no".split()
        tmp = str(network.server.lab.tmp)
        network.serve("redis", ["redis-server", *words, "--save", "", "--dir", tmp], PORT)
        meter = Meter()
        words = f"-h {address} -p {PORT} -t get -n {REQUESTS} -c 16 -d 64 --csv".split()
        said = network.load(["redis-benchmark", *words])
        busy = meter.stop()
        rows = {row["test"]: row for row in csv.DictReader(said.splitlines())}
        if "GET" not in rows:
            raise LabError(f"redis-benchmark: {said[-500:]}")
        row = rows["GET"]
        return {
            RATE.name: float(row["rps"]),
            P99.name: float(row["p99_latency_ms"]),
            CPU.name: busy.both * 1e6 / REQUESTS,
        }
