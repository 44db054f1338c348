# SPDX-License-Identifier: Apache-2.0
"""An etcd server and agents in the lab."""

from __future__ import annotations

import base64
import json
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.lab import Host, patience

from .cni import Network
from .observe import until


class Etcd:
    """etcd on a host of its own, with its data in a directory that outlives a restart."""

    def __init__(self, host: Host, scheme: str = "http", *options: str) -> None:
        self.host = host
        self.url = f"{scheme}://{host.address}:2379"
        self.data = host.lab.tmp / f"etcd-{host.role}"
        self.options = options
        self.process: subprocess.Popen[str] | None = None
        self.headers: dict[str, str] = {}
        self.context: ssl.SSLContext | None = None
        self.start()

    def start(self) -> None:
        words = ["etcd", "--data-dir", str(self.data), "--logger", "zap", "--log-level", "error"]
        words += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url]
        words += ["--listen-peer-urls", "http://127.0.0.1:2380", *self.options]
        self.process = self.host.popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.host.wait_for_port(2379, timeout=20)

    def stop(self) -> None:
        """As a crash: without a word."""
        assert self.process is not None
        self.host.lab.kill(self.process)

    def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A request to etcd's JSON gateway, not by the code that is tested."""
        headers = {"Content-Type": "application/json", **self.headers}
        request = Request(self.url + path, json.dumps(body).encode(), headers)

        def ask() -> dict[str, Any]:
            with urlopen(request, timeout=patience(10), context=self.context) as response:
                answer: dict[str, Any] = json.load(response)
                return answer

        return self.host.inside(ask)

    def subnets(self) -> dict[str, str]:
        """Which node has which subnet."""
        first, end = (base64.b64encode(text).decode() for text in (b"/xmasq/", b"/xmasq0"))
        found = {}
        for kv in self.call("/v3/kv/range", {"key": first, "range_end": end}).get("kvs", ()):
            key, value = (base64.b64decode(kv[word]).decode() for word in ("key", "value"))
            found[json.loads(value)["node"]] = key.rpartition("/")[2].replace("-", "/")
        return found


class Agent:
    """xmasq agent on a host."""

    def __init__(self, network: Network, host: Host, *words: str) -> None:
        self.network = network
        self.host = host
        self.words = words
        self.config = network.directory(host) / "10-xmasq.conflist"
        self.log = network.directory(host) / "agent.log"
        self.process: subprocess.Popen[str] | None = None
        self.start()

    def command(self, *words: str) -> list[str]:
        plugin = self.network.config(self.host)
        whole = {key: plugin.pop(key) for key in ("cniVersion", "name")} | {"plugins": [plugin]}
        self.config.write_text(json.dumps(whole))
        start = [sys.executable, "-m", "xmasq_link", "agent", str(self.config), "node", self.host.role]
        return [*start, *self.words, *words]

    def start(self) -> None:
        with self.log.open("a") as log:
            self.process = self.host.popen(self.command(), stdout=log, stderr=log)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(timeout=patience(10))

    def said(self) -> str:
        return self.log.read_text()

    def state(self) -> Path:
        return self.network.directory(self.host) / "pods" / "node.json"

    def ready(self, *others: str) -> None:
        """Waits until this node has a subnet, and routes to others."""
        until(self.state().exists, f"{self.host} has a subnet:\n{self.said()}", timeout=30)
        until(
            lambda: set(others) <= set(routes(self.host)),
            f"{self.host} has routes to {others}:\n{self.said()}",
            timeout=30,
        )


def routes(host: Host, dev: str = "xm0") -> dict[str, str]:
    """The routes to other nodes: gateways by subnet."""
    links = {one["ifname"] for one in host.ip_json("link show")}
    if dev not in links:
        return {}
    return {r["dst"]: r["gateway"] for r in host.ip_json(f"route show dev {dev} proto 120") if "gateway" in r}


def fdb(host: Host, dev: str = "xm0") -> dict[str, str]:
    """Where frames for a link layer address go."""
    entries = json.loads(host.run(f"bridge -j fdb show dev {dev}").stdout)
    return {e["mac"]: e["dst"] for e in entries if "dst" in e}
