# SPDX-License-Identifier: Apache-2.0
"""docs/cni-authors.md: its shell and Python blocks do on two hosts what they say."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.lab import ROOT, Container, Host, patience, tcp_transfer, xmasq, xmasq_json

from .observe import negotiate, programs, stats

pytestmark = pytest.mark.e2e


def blocks(kind: str) -> list[str]:
    """The blocks of a kind, in their order."""
    text = (ROOT / "docs/cni-authors.md").read_text()
    return re.findall(rf"```{kind}\n(.*?)```", text, re.S)


def environment(host: Host, peer: Host, path: Path) -> dict[str, str]:
    """What the page calls the two nodes' addresses; and an xmasq in PATH."""
    wrapper = path / "xmasq"
    if not wrapper.exists():
        wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -m xmasq_link "$@"\n')
        wrapper.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "LINK": "cni0",
        "VNI": "7",
        "NODE_IP": host.address,
        "NODE_MAC": f"02:00:00:00:07:{host.number:02x}",
        "GATEWAY": f"10.244.{host.number}.0",
        "PEER_IP": peer.address,
        "PEER_MAC": f"02:00:00:00:07:{peer.number:02x}",
        "PEER_GATEWAY": f"10.244.{peer.number}.0",
        "PEER_SUBNET": f"10.244.{peer.number}.0/24",
    }


def run(host: Host, command: list[str], env: dict[str, str]) -> str:
    process = host.popen(command, env=env)
    out, err = process.communicate(timeout=patience(60))
    assert process.returncode == 0, err
    return str(out)


def pods(hosts: list[Host]) -> list[Container]:
    mtu = min(host.ip_json("link show cni0")[0]["mtu"] for host in hosts)
    return [
        host.add_container(
            "pod", f"10.244.{host.number}.2", mode="routed", prefixlen=24, bridge="", mtu=mtu
        )
        for host in hosts
    ]  # fmt: skip


def works(hosts: list[Host]) -> None:
    a, b = pods(hosts)
    negotiate(a, b, "cni0")
    assert tcp_transfer(a, b, 500_000).size == 500_000
    assert stats(hosts[0], "cni0")["encoded"] > 5


def test_shell(lab, tmp_path):
    hosts = lab.hosts(2)
    ensure, add, mtu, health, remove, clean = blocks("sh")
    for host, peer in (hosts, hosts[::-1]):
        env = environment(host, peer, tmp_path)
        run(host, ["sh", "-ec", ensure + ensure + add + add], env)
        assert run(host, ["sh", "-ec", mtu], env) == "1500\n"
    works(hosts)
    for host, peer in (hosts, hosts[::-1]):
        env = environment(host, peer, tmp_path)
        run(host, ["sh", "-ec", health + remove], env)
        assert peer.address not in host.run("bridge fdb show dev cni0").stdout
        run(host, ["sh", "-ec", clean], env)
        assert programs(host, "eth0") == {}


def test_shell_with_attach(lab, tmp_path):
    hosts = lab.hosts(2)
    (attach,) = blocks("sh attach")
    for host, peer in (hosts, hosts[::-1]):
        run(host, ["sh", "-ec", attach + blocks("sh")[1]], environment(host, peer, tmp_path))
        assert xmasq_json(host, "link", "show")[0]["linkinfo"]["info_data"]["attached"]
    works(hosts)


def test_python(lab, tmp_path):
    hosts = lab.hosts(2)
    (script,) = blocks("python")
    for host, peer in (hosts, hosts[::-1]):
        for _ in range(2):
            assert run(host, [sys.executable, "-c", script], environment(host, peer, tmp_path)) == "1500\n"
    works(hosts)
    # Another address of the node: a new link.
    hosts[0].ip("addr add 192.0.2.9/24 dev eth0")
    env = environment(hosts[0], hosts[1], tmp_path) | {"NODE_IP": "192.0.2.9"}
    run(hosts[0], [sys.executable, "-c", script], env)
    assert xmasq_json(hosts[0], "link", "show")[0]["linkinfo"]["info_data"]["local"] == "192.0.2.9"
    bad = hosts[0].popen([sys.executable, "-c", script], env=env | {"LINK": "a/b", "NODE_IP": "192.0.2.1"})
    assert bad.communicate(timeout=patience(30))[1].startswith("configuration: name: ")


def test_the_go_code_names_what_the_command_prints(lab):
    """It is not compiled here; but the words and keys in it are those of the command."""
    host = lab.host()
    first, second = blocks("go")
    words = re.search(r'"xmasq", "link", "add", name, (.*?)\)\n', first, re.S)
    assert words
    values = {"strconv.Itoa(vni)": "7", "local.String()": host.address, "mac.String()": "02:00:00:00:00:01"}
    line = [values.get(word.strip(), word.strip().strip('"')) for word in words[1].split(",")]
    xmasq(host, "link", "add", "cni0", *line)
    (link,) = xmasq_json(host, "link", "show", "cni0")
    assert {"ifname", "mtu", "linkinfo"} <= set(re.findall(r'json:"(\w+)"', first))
    assert link["linkinfo"]["info_data"].keys() >= {"id", "local"}
    assert '"xmasq", "attach", name' in second
