# SPDX-License-Identifier: Apache-2.0
"""A container runtime's part: calls the CNI plugin as libcni does, on the lab's hosts."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab import Host, Lab, Namespace
from tests.lab.process import Finished

#: Where Debian's containernetworking-plugins are.
PLUGINS = "/usr/lib/cni"
CLUSTER = "10.244.0.0/16"


class Pod(Namespace):
    """A container's namespace, still empty."""

    def __init__(self, host: Host, name: str) -> None:
        super().__init__(host.lab, f"{host.role}-{name}")
        self.host = host
        self.id = f"{self.name}-id"


@dataclass
class Network:
    """A network configuration on some hosts; ``more`` are further keys of it, ``config`` what a host has."""

    lab: Lab
    hosts: list[Host]
    version: str = "1.1.0"
    more: dict[str, Any] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    def subnet(self, host: Host) -> str:
        return f"10.244.{host.number}.0/24"

    def config(self, host: Host) -> dict[str, Any]:
        made: dict[str, Any] = {
            "cniVersion": self.version,
            "name": "pods",
            "type": "xmasq-cni",
            "vni": 7,
            "link": "xm0",
            "underlay": "eth0",
            "network": CLUSTER,
            "runDir": str(self.directory(host)),
            "ipam": {"type": "host-local", "dataDir": str(self.directory(host) / "ipam")},
        }
        if "datastore" not in self.more:
            made["peers"] = [
                {"subnet": self.subnet(other), "address": other.address}
                for other in self.hosts
                if other is not host
            ]
            made["ipam"] |= {
                "ranges": [[{"subnet": self.subnet(host)}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            }
        made |= self.more
        return {key: value for key, value in made.items() if value is not None}

    def directory(self, host: Host) -> Path:
        """The host's own /run: the hosts share a file system."""
        path = self.lab.tmp / f"cni-{host.role}"
        path.mkdir(exist_ok=True)
        return path

    def call(
        self, command: str, host: Host, pod: Pod | None = None, ifname: str = "eth0", **change: Any
    ) -> Finished:
        """Runs the plugin on a host. ``change``: keys of the configuration; ``env``: of the environment."""
        done = host.run(
            self.words(command, host, pod, ifname, change.pop("env", {})),
            check=False,
            input=(json.dumps({**self.config(host), **change})),
        )
        assert not done.stderr, done.stderr
        return done

    def words(
        self,
        command: str,
        host: Host,
        pod: Pod | None,
        ifname: str = "eth0",
        env: dict[str, str] | None = None,
    ) -> list[str]:
        variables = {"CNI_COMMAND": command, "CNI_PATH": PLUGINS}
        if pod is not None:
            variables |= {
                "CNI_CONTAINERID": pod.id,
                "CNI_NETNS": str(pod.path),
                "CNI_IFNAME": ifname,
            }
        variables |= env or {}
        return ["env", *(f"{k}={v}" for k, v in variables.items()), sys.executable, "-m", "xmasq_link._cni"]

    def good(self, command: str, host: Host, pod: Pod | None = None, **change: Any) -> dict[str, Any]:
        """As call(), and it must succeed; returns its answer."""
        done = self.call(command, host, pod, **change)
        assert done.returncode == 0, done.stdout
        answer: dict[str, Any] = json.loads(done.stdout or "{}")
        return answer

    def bad(self, command: str, host: Host, pod: Pod | None = None, **change: Any) -> dict[str, Any]:
        """As call(), and it must fail; returns the error, which is one of the specification's form."""
        done = self.call(command, host, pod, **change)
        assert done.returncode != 0, done.stdout
        answer: dict[str, Any] = json.loads(done.stdout)
        assert answer["cniVersion"]
        assert isinstance(answer["code"], int)
        assert answer["msg"]
        assert "\n" not in answer["msg"]
        assert "internal error" not in answer["msg"]
        return answer

    def pod(self, host: Host, name: str, **change: Any) -> Pod:
        """A container in the network."""
        pod = Pod(host, name)
        self.add(pod, **change)
        return pod

    def add(self, pod: Pod, **change: Any) -> dict[str, Any]:
        result = self.good("ADD", pod.host, pod, **change)
        self.results[pod.name] = result
        pod.address = result["ips"][0]["address"].partition("/")[0]
        return result

    def check(self, pod: Pod) -> None:
        self.good("CHECK", pod.host, pod, prevResult=self.results[pod.name])
