# SPDX-License-Identifier: Apache-2.0
"""TCP request and response, one at a time: sockperf."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tests.lab import LabError

from .cpu import Meter
from .network import Network
from .workload import Metric

PORT = 11111
MEDIAN = Metric("median", "µs", "less", 1)
P99 = Metric("p99", "µs", "less", 1)
CPU = Metric("cpu", "µs/transaction", "less", 1)


class RoundTrip:
    """14 bytes there and back over one connection; both ends keep to their CPU."""

    name = "TCP round trip"
    metrics = (MEDIAN, P99, CPU)

    def run(self, network: Network) -> Mapping[str, float]:
        """See Workload."""
        ends = ["-i", network.server.address, "-p", str(PORT)]
        network.serve("sockperf-tcp", ["sockperf", "server", "--tcp", *ends], PORT)
        meter = Meter()
        said = network.load(["sockperf", "ping-pong", "--tcp", "--full-rtt", "-t", "1", *ends])
        busy = meter.stop()
        at = {float(q): float(v) for q, v in re.findall(r"percentile (\d+\.\d+) = +([\d.]+)", said)}
        # The percentiles leave out the first 0.4 s; CPU time counts for all of them.
        count = re.search(r"\[Total Run\].*ReceivedMessages=(\d+)", said)
        if count is None or 50.0 not in at or 99.0 not in at:
            raise LabError(f"sockperf: {said[-500:]}")
        return {MEDIAN.name: at[50.0], P99.name: at[99.0], CPU.name: busy.both * 1e6 / int(count[1])}
