# SPDX-License-Identifier: Apache-2.0
"""flannel on xmasq: its vxlan backend with its devices attached, and its extension backend with our commands.

flanneld itself is not there. What it does is replayed: the netlink requests of pkg/backend/vxlan, with its
attributes and flags, and the commands of pkg/backend/extension, with their environment and standard input
(flannel-io/flannel, 0.28).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from typing import Any

import pytest
from pyroute2 import IPRoute

from tests.lab import ROOT, Container, Host, patience, tcp_transfer, udp_echo, xmasq, xmasq_json
from xmasq_link import _flannel

from .observe import Stream, flow, make_hookable, negotiate, programs, stats, until
from .test_watch import Watch

pytestmark = pytest.mark.e2e

NETWORK = "10.244.0.0/16"
PERMANENT, SELF, AF_BRIDGE = 0x80, 0x02, 7


def subnet(host: Host) -> str:
    return f"10.244.{host.number}.0/24"


def gateway(host: Host) -> str:
    """What flannel gives to the device: the subnet's first address."""
    return f"10.244.{host.number}.0"


def pod(host: Host, number: int = 2) -> Container:
    """A container as the flannel CNI plugin would leave it, its route to the network included."""
    return host.add_container(
        "pod", f"10.244.{host.number}.{number}", mode="routed", prefixlen=24, bridge="", mtu=1450
    )


# The vxlan backend


class Flanneld:
    """pkg/backend/vxlan: newVXLANDevice and Configure at the start, handleSubnetEvents afterwards."""

    def __init__(self, host: Host, device: str = "flannel.1") -> None:
        self.host = host
        self.device = device
        self.mac = "7e:" + os.urandom(5).hex(":")

    def start(self) -> None:
        def make() -> None:
            with IPRoute() as ipr:
                (parent,) = ipr.link_lookup(ifname="eth0")
                ipr.link(
                    "add",
                    ifname=self.device,
                    kind="vxlan",
                    address=self.mac,
                    mtu=1500 - 50,
                    vxlan_id=1,
                    vxlan_link=parent,
                    vxlan_local=self.host.address,
                    vxlan_port=8472,
                    vxlan_learning=0,
                )
                (index,) = ipr.link_lookup(ifname=self.device)
                ipr.addr("add", index=index, address=gateway(self.host), prefixlen=32)
                ipr.link("set", index=index, state="up")

        self.host.inside(make)

    def added(self, other: Flanneld) -> None:
        """AddARP, AddFDB, RouteReplace."""

        def add() -> None:
            with IPRoute() as ipr:
                (index,) = ipr.link_lookup(ifname=self.device)
                via = gateway(other.host)
                ipr.neigh("replace", ifindex=index, dst=via, lladdr=other.mac, state=PERMANENT)
                ipr.fdb(
                    "replace",
                    ifindex=index,
                    lladdr=other.mac,
                    dst=other.host.address,
                    flags=SELF,
                    state=PERMANENT,
                )
                ipr.route("replace", dst=subnet(other.host), gateway=via, oif=index, flags=["onlink"])

        self.host.inside(add)

    def removed(self, other: Flanneld) -> None:
        """DelARP, DelFDB, RouteDel."""

        def delete() -> None:
            with IPRoute() as ipr:
                (index,) = ipr.link_lookup(ifname=self.device)
                via = gateway(other.host)
                ipr.neigh("del", ifindex=index, dst=via, lladdr=other.mac, state=PERMANENT)
                ipr.fdb("del", ifindex=index, lladdr=other.mac, dst=other.host.address, flags=SELF)
                ipr.route("del", dst=subnet(other.host), gateway=via, oif=index, flags=["onlink"])

        self.host.inside(delete)


def cluster(hosts: list[Host]) -> list[Flanneld]:
    flannels = [Flanneld(host) for host in hosts]
    for one in flannels:
        one.start()
    for one in flannels:
        for other in flannels:
            if other is not one:
                one.added(other)
    return flannels


def test_vxlan_backend_with_its_devices_watched(lab):
    """Nothing in flannel changes. Its device is made anew, a node leaves, and no packet is lost."""
    hosts = lab.hosts(2)
    watches = [Watch(host, "flannel.*") for host in hosts]
    flannels = cluster(hosts)
    for watch in watches:
        watch.expect("flannel.1", "attached")
    a, b = (pod(host) for host in hosts)
    negotiate(a, b, "flannel.1")
    assert tcp_transfer(a, b, 1_000_000).size == 1_000_000
    assert stats(hosts[0], "flannel.1")["encoded"] > 10
    with Stream(a, b, rate=1000) as stream:
        stream.wait_for(200)
        flannels[0].added(flannels[1])  # flanneld starts again, and replays what it knows
        stream.wait_for(len(stream.numbers) + 200)
    assert (stream.lost, stream.duplicates) == (0, 0)
    # It deletes a device that no longer fits its configuration, and makes another one.
    for one in flannels:
        one.host.ip("link del flannel.1")
        one.start()
    for watch in watches:
        watch.expect("flannel.1", "gone")
        watch.expect("flannel.1", "attached")
    flannels[0].added(flannels[1])
    flannels[1].added(flannels[0])
    assert udp_echo(a, b, count=50).lost == 0
    # A node goes: nothing is sent to it any more, though its keys are still good.
    flannels[0].removed(flannels[1])
    assert a.ping(b, count=1).received == 0
    for watch in watches:
        watch.end()


def test_vxlan_backend_attached_while_it_is_in_use(lab):
    hosts = lab.hosts(2)
    cluster(hosts)
    meet_hosts(hosts)
    a, b = (pod(host) for host in hosts)
    assert a.ping(b, count=1).received == 1
    for host in hosts:
        make_hookable(host, "flannel.1", "eth0")
    with Stream(a, b, rate=round(2000 / patience(1))) as stream:
        stream.wait_for(200)
        for host in hosts:
            xmasq(host, "attach", "flannel.1")
        until(lambda: flow(a, b, "flannel.1"), "it is encoded")
        stream.wait_for(len(stream.numbers) + 500)
        for host in hosts:
            xmasq(host, "detach", "flannel.1")
        stream.wait_for(len(stream.numbers) + 500)
    assert (stream.lost, stream.duplicates) == (0, 0)


def meet_hosts(hosts: list[Host]) -> None:
    for one in hosts:
        for other in hosts:
            if one is not other:
                assert one.ping(other, count=1).received == 1


# The extension backend


def net_conf() -> dict[str, Any]:
    """The configuration that docs/flannel.md tells to use."""
    text = (ROOT / "docs/flannel.md").read_text()
    (block,) = [b for b in re.findall(r"```json\n(.*?)```", text, re.S) if '"extension"' in b]
    conf: dict[str, Any] = json.loads(block)
    return conf


class Extension:
    """pkg/backend/extension: words split at spaces, $VAR expanded, no shell, a line feed behind the data."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.commands = net_conf()["Backend"]
        self.data = ""

    def run(self, name: str, environment: dict[str, str], stdin: str = "") -> str:
        """Runs a command; returns what it says, which flannel puts into its log. Fails as flannel does."""
        environment = {**os.environ, **environment}
        words = self.commands[f"{name}Command"].split()
        words = [
            re.sub(r"\$\{?(\w+)\}?", lambda match: environment.get(match[1], ""), word) for word in words
        ]
        assert words[0] == "xmasq"  # in the container's PATH; here it is not installed
        process = self.host.popen(
            [sys.executable, "-m", "xmasq_link", *words[1:]],
            stdin=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        output, _ = process.communicate(stdin + "\n", timeout=60)
        assert process.returncode == 0, output
        return str(output.strip())

    def start(self) -> str:
        self.data = self.run("PreStartup", {})
        return self.run(
            "PostStartup",
            {
                "NETWORK": NETWORK,
                "SUBNET": subnet(self.host),
                "IPV6SUBNET": "::/0",
                "PUBLIC_IP": self.host.address,
                "PUBLIC_IPV6": "::",
            },
        )

    def added(self, other: Extension) -> None:
        self.run("SubnetAdd", {"SUBNET": subnet(other.host), "PUBLIC_IP": other.host.address}, other.data)

    def removed(self, other: Extension) -> None:
        self.run("SubnetRemove", {"SUBNET": subnet(other.host), "PUBLIC_IP": other.host.address}, other.data)


def about(host: Host) -> list[Any]:
    return [
        host.ip_json("-d link show flannel.1"),
        host.ip_json("address show flannel.1"),
        host.ip_json("neigh show dev flannel.1"),
        host.ip_json("route show dev flannel.1"),
        host.run("bridge fdb show dev flannel.1").stdout,
    ]


def test_extension_backend(lab):
    hosts = lab.hosts(3)
    nodes = [Extension(host) for host in hosts]
    said = nodes[0].start()
    assert said == "flannel.1: vni 1 local 192.0.2.1 dev eth0 mtu 1500"
    for node in nodes[1:]:
        node.start()
    for one, other in ((0, 1), (1, 0), (0, 2)):
        nodes[one].added(nodes[other])
    a, b = (pod(host) for host in hosts[:2])
    negotiate(a, b, "flannel.1")
    assert tcp_transfer(a, b, 1_000_000).size == 1_000_000
    assert stats(hosts[0], "flannel.1")["encoded"] > 10
    # flanneld starts again: all is as before, and nothing is lost.
    before = about(hosts[0])
    with Stream(a, b, rate=500) as stream:
        stream.wait_for(100)
        nodes[0].start()
        for other in nodes[1:]:
            nodes[0].added(other)
        stream.wait_for(len(stream.numbers) + 100)
    assert (stream.lost, stream.duplicates) == (0, 0)
    assert about(hosts[0]) == before
    # A node goes; twice is as good as once.
    nodes[0].removed(nodes[2])
    nodes[0].removed(nodes[2])
    assert subnet(hosts[2]) not in str(about(hosts[0]))
    assert "192.0.2.3" not in str(about(hosts[0]))
    assert udp_echo(a, b, count=20).lost == 0
    # The same subnet on a node with another address.
    nodes[0].run("SubnetAdd", {"SUBNET": subnet(hosts[1]), "PUBLIC_IP": "192.0.2.77"})
    assert "192.0.2.2" not in str(about(hosts[0]))
    assert "dst 192.0.2.77" in about(hosts[0])[4]
    nodes[0].added(nodes[1])
    assert udp_echo(a, b, count=20).lost == 0


def test_extension_after_the_vxlan_backend(lab):
    """The device that the vxlan backend has left is replaced, as flannel replaces one that does not fit."""
    host = lab.host()
    Flanneld(host).start()
    Extension(host).start()
    (link,) = xmasq_json(host, "link", "show")
    assert (link["ifname"], link["mtu"], link["address"]) == ("flannel.1", 1500, "0a:58:c0:00:02:01")
    assert [(a["local"], a["prefixlen"]) for a in host.ip_json("address show flannel.1")[0]["addr_info"]] == [
        ("10.244.1.0", 32)
    ]
    # Another subnet, as when the lease was lost.
    Extension(host).run("PostStartup", {"SUBNET": "10.244.9.0/24", "PUBLIC_IP": host.address})
    assert [a["local"] for a in host.ip_json("address show flannel.1")[0]["addr_info"]] == ["10.244.9.0"]
    # And another address of the node.
    host.ip("addr add 192.0.2.9/24 dev eth0")
    Extension(host).run("PostStartup", {"SUBNET": "10.244.9.0/24", "PUBLIC_IP": "192.0.2.9"})
    (link,) = xmasq_json(host, "link", "show")
    assert link["linkinfo"]["info_data"]["local"] == "192.0.2.9"
    assert set(programs(host, "eth0")) == {"xmasq_ingress", "xmasq_egress"}


BAD = {
    "no subnet": ("post-startup", {"PUBLIC_IP": "192.0.2.1"}, "SUBNET"),
    "no address": ("post-startup", {"SUBNET": "10.244.1.0/24"}, "PUBLIC_IP"),
    "IPv6 only": ("post-startup", {"SUBNET": "0.0.0.0/0", "PUBLIC_IP": "0.0.0.0"}, "SUBNET"),
    "subnet is no subnet": ("subnet-add", {"SUBNET": "10.244.1.0", "PUBLIC_IP": "192.0.2.1"}, "SUBNET"),
    "subnet is text": ("subnet-add", {"SUBNET": "x", "PUBLIC_IP": "192.0.2.1"}, "SUBNET"),
    "subnet with host bits": ("subnet-add", {"SUBNET": "10.244.1.5/24", "PUBLIC_IP": "192.0.2.1"}, "SUBNET"),
    "address is text": ("subnet-add", {"SUBNET": "10.244.1.0/24", "PUBLIC_IP": "x"}, "PUBLIC_IP"),
    "address is a group": ("subnet-add", {"SUBNET": "10.244.1.0/24", "PUBLIC_IP": "239.0.0.1"}, "PUBLIC_IP"),
    "address is not here": ("post-startup", {"SUBNET": "10.244.1.0/24", "PUBLIC_IP": "192.0.2.99"}, "local"),
    "no link yet": ("subnet-add", {"SUBNET": "10.244.1.0/24", "PUBLIC_IP": "192.0.2.2"}, "name"),
    "no link any more": ("subnet-remove", {"SUBNET": "10.244.1.0/24", "PUBLIC_IP": "192.0.2.2"}, "name"),
    "bad id": ("post-startup id 16777216", {}, "id"),
    "name of another device": (
        "post-startup eth0", {"SUBNET": "10.244.1.0/24", "PUBLIC_IP": "192.0.2.1"}, "name",
    ),
    "unknown word": ("subnet-add xm0 mtu 1", {}, "mtu"),
    "unknown command": ("shutdown", {}, "shutdown"),
}  # fmt: skip


@pytest.fixture(scope="module")
def bare():
    from tests.lab import Lab

    with Lab() as lab:
        yield lab.host()


@pytest.mark.parametrize(("words", "environment", "argument"), BAD.values(), ids=BAD.keys())
def test_bad_input(bare, words, environment, argument):
    before = bare.ip_json("-d link show")
    process = bare.popen(
        [sys.executable, "-m", "xmasq_link", "flannel", *shlex.split(words)],
        env={**os.environ, **environment},
    )
    out, err = process.communicate(timeout=patience(30))
    assert (process.returncode, out) == (2, "")
    assert err.startswith(f"xmasq: {argument}: ")
    assert err.count("\n") == 1
    assert bare.ip_json("-d link show") == before


def test_the_mac_of_an_address():
    import ipaddress

    assert _flannel.lladdr(ipaddress.IPv4Address("192.0.2.1")) == "0a:58:c0:00:02:01"
