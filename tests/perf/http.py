# SPDX-License-Identifier: Apache-2.0
"""HTTP: nginx, and wrk as its load."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tests.lab import LabError

from .cpu import Meter
from .network import Network
from .workload import Metric

PORT = 8080
_CONF = """\
daemon off;
master_process off;
error_log stderr crit;
pid {tmp}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {tmp}/nginx-body;
    proxy_temp_path {tmp}/nginx-proxy;
    fastcgi_temp_path {tmp}/nginx-fastcgi;
    uwsgi_temp_path {tmp}/nginx-uwsgi;
    scgi_temp_path {tmp}/nginx-scgi;
    server {{
        listen {address}:{port} backlog=1024;
        location / {{ return 200 "{body}"; }}
    }}
}}
"""
RATE = Metric("requests", "1/s", "more", 0)
P99 = Metric("p99", "ms", "less", 2)
CPU = Metric("cpu", "µs/request", "less", 1)


class Http:
    """Requests for 1 KB by so many connections at a time, kept open or made anew for each request."""

    metrics = (RATE, P99, CPU)

    def __init__(self, connections: int, *, keep_alive: bool) -> None:
        self.connections, self.keep_alive = connections, keep_alive
        self.name = "HTTP keep-alive" if keep_alive else "connect, request, close"

    def run(self, network: Network) -> Mapping[str, float]:
        """See Workload."""
        address = network.server.address
        tmp = network.server.lab.tmp
        conf = tmp / f"nginx-{network.candidate}.conf"
        if not conf.exists():
            conf.write_text(_CONF.format(tmp=tmp, address=address, port=PORT, body="x" * 1024))
        network.serve("nginx", ["nginx", "-c", str(conf), "-e", "stderr", "-p", str(tmp)], PORT)
        words = ["-t", "1", "-c", str(self.connections), "-d", "1s", "--latency"]
        if not self.keep_alive:
            words += ["-H", "Connection: close"]
        meter = Meter()
        said = network.load(["wrk", *words, f"http://{address}:{PORT}/"])
        busy = meter.stop()
        rate = re.search(r"Requests/sec: +([\d.]+)", said)
        total = re.search(r"(\d+) requests in", said)
        p99 = re.search(r"99% +([\d.]+)(us|ms|s)", said)
        if not rate or not total or not p99 or "Non-2xx" in said or not int(total[1]):
            raise LabError(f"wrk: {said[-500:]}")
        ms = float(p99[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[p99[2]]
        return {RATE.name: float(rate[1]), P99.name: ms, CPU.name: busy.both * 1e6 / int(total[1])}
