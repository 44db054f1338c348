# SPDX-License-Identifier: Apache-2.0
"""The CNI plugin, called as container runtimes call it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Host, Lab, patience, tcp_transfer

from .cni import CLUSTER, PLUGINS, Network, Pod
from .observe import stats

pytestmark = pytest.mark.e2e

HOST_LOCAL = f"{PLUGINS}/host-local"


@pytest.fixture
def network(lab: Lab) -> Network:
    return Network(lab, lab.hosts(2))


@pytest.fixture
def single(lab: Lab) -> Network:
    return Network(lab, lab.hosts(1))


def addresses_in_use(network: Network, host: Host) -> set[str]:
    """What host-local has given and not got back."""
    directory = network.directory(host) / "ipam" / "pods"
    return (
        {path.name for path in directory.iterdir() if path.name[0].isdigit()} if directory.exists() else set()
    )


def veths(host: Host) -> set[str]:
    return {one["ifname"] for one in host.ip_json("link show") if one["ifname"].startswith("xmq")}


def records(network: Network, host: Host) -> list[Path]:
    directory = network.directory(host) / "pods" / "attachments"
    return list(directory.iterdir()) if directory.exists() else []


def nothing_left(network: Network, host: Host) -> bool:
    return not (addresses_in_use(network, host) or veths(host) or records(network, host))


def script(lab: Lab, name: str, text: str) -> str:
    """A plugin of the test's own; returns a CNI_PATH with it first."""
    directory = lab.tmp / "plugins"
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return f"{directory}:{PLUGINS}"


def test_containers_talk_and_are_encoded(network):
    one, two = network.hosts
    a, b = network.pod(one, "a"), network.pod(two, "b")
    result = network.results[a.name]
    assert result["cniVersion"] == "1.1.0"
    host_end, inside = result["interfaces"]
    assert inside["name"] == "eth0"
    assert inside["sandbox"] == str(a.path)
    assert inside["mtu"] == host_end["mtu"] == 1500
    assert result["ips"] == [{"address": "10.244.1.2/24", "gateway": "10.244.1.1", "interface": 1}]
    assert a.ip_json("link show eth0")[0]["mtu"] == 1500
    assert a.ip_json("link show eth0")[0]["address"] == inside["mac"]
    assert a.ping(b, count=5).received == 5
    assert tcp_transfer(a, b, 5_000_000).size == 5_000_000
    assert tcp_transfer(b, a, 5_000_000).size == 5_000_000
    for host in network.hosts:
        counted = stats(host)
        assert counted["fallback"] < counted["encoded"] / 5
    for pod in (a, b):
        network.check(pod)
    # The node itself reaches containers elsewhere, and its own; and containers of one node each other.
    c = network.pod(one, "c")
    assert one.ping(b.address, count=2).received == 2
    assert one.ping(a.address, count=2).received == 2
    assert a.ping(c, count=2).received == 2


@pytest.mark.parametrize(("encapsulation", "mtu"), [("vxlan", 1450), ("none", 1500)])
def test_other_encapsulations(network, encapsulation, mtu):
    network.more["encapsulation"] = encapsulation
    one, two = network.hosts
    a, b = network.pod(one, "a"), network.pod(two, "b")
    assert network.results[a.name]["interfaces"][1]["mtu"] == mtu
    assert a.ping(b, count=3, size=mtu - 28, df=True).received == 3
    assert tcp_transfer(a, b, 1_000_000).size == 1_000_000
    network.check(a)
    assert network.good("STATUS", one) == {}
    found = [link["linkinfo"]["info_kind"] for link in one.ip_json("link show") if link["ifname"] == "xm0"]
    assert found == (["vxlan"] if encapsulation == "vxlan" else [])
    # From now on encoded: the node's link is replaced, the containers stay.
    network.more["encapsulation"] = "xmasq"
    for host in network.hosts:
        network.pod(host, "new")
    assert a.ping(b, count=3).received == 3
    assert stats(one)["encoded"] > 0
    routes = one.ip_json(f"route get {b.address}")
    assert routes[0]["dev"] == "xm0"


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_older_versions_of_the_specification(single, version):
    single.version = version
    (host,) = single.hosts
    pod = single.pod(host, "a")
    result = single.results[pod.name]
    assert result["cniVersion"] == version
    assert all("mtu" not in item for item in result["interfaces"])
    assert result["ips"][0].get("version") == ("4" if version == "0.4.0" else None)
    single.check(pod)
    for command in ("GC", "STATUS"):
        assert single.bad(command, host)["code"] == 1
    assert single.call("DEL", host, pod, prevResult=result).stdout == ""
    assert nothing_left(single, host)


def test_version(single):
    (host,) = single.hosts
    words = single.words("VERSION", host, None)
    for given, version in (('{"cniVersion": "1.0.0"}', "1.0.0"), ("", "1.1.0"), ("nonsense", "1.1.0")):
        answer = json.loads(host.run(words, input=given).stdout)
        assert answer == {"cniVersion": version, "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}


def test_errors_have_the_codes_of_the_specification(single):
    """And nothing is half made."""
    (host,) = single.hosts
    pod = Pod(host, "a")
    path = script(
        single.lab,
        "elsewhere",
        """\
        case $CNI_COMMAND in
        ADD) echo '{"cniVersion": "1.1.0", "ips": [{"address": "203.0.113.9/24"}]}';;
        esac""",
    )
    script(single.lab, "silent", "true")
    script(single.lab, "mute", "echo nonsense")
    script(
        single.lab,
        "full",
        """echo '{"code": 123, "msg": "no addresses left", "details": "all in use"}'; exit 1""",
    )
    bad = single.bad

    def add(code: int, text: str, **change: Any) -> None:
        error = bad("ADD", host, pod, **change)
        assert (error["code"], text in error["msg"]) == (code, True), error

    def env(**variables: str) -> dict[str, str]:
        return {f"CNI_{key}": value for key, value in variables.items()}

    add(4, "CNI_CONTAINERID", env=env(CONTAINERID=""))
    add(4, "CNI_CONTAINERID", env=env(CONTAINERID="a/../b"))
    add(4, "CNI_NETNS", env=env(NETNS=""))
    add(4, "CNI_IFNAME", env=env(IFNAME="sixteen-bytes-ab"))
    add(4, "CNI_IFNAME", env=env(IFNAME="a/b"))
    add(4, "CNI_COMMAND", env=env(COMMAND="HELP"))
    add(4, "CNI_PATH", env=env(PATH=""))
    add(4, "host's own", env=env(NETNS=str(host.path)))
    add(4, "no network namespace", env=env(NETNS="/etc/passwd"))
    add(3, "CNI_NETNS", env=env(NETNS="/run/netns/there-is-none"))
    add(4, "already", ifname="lo")
    add(1, "cniVersion", cniVersion="9.9.9")
    add(2, "encapsualtion", encapsualtion="xmasq")
    add(7, "vni", vni=1 << 24)
    add(7, "mtu", mtu=9000)
    add(7, "link", link="eth0")
    add(7, "secretFile", secretFile="/nowhere")
    add(7, "no-such-plugin", ipam={"type": "no-such-plugin", "subnet": "10.244.1.0/24"})
    add(7, "ipam.type", ipam={"type": "../host-local", "subnet": "10.244.1.0/24"})
    add(7, "203.0.113.9", ipam={"type": "elsewhere", "subnet": "10.244.1.0/24"}, env=env(PATH=path))
    add(7, "no address", ipam={"type": "silent", "subnet": "10.244.1.0/24"}, env=env(PATH=path))
    add(6, "mute", ipam={"type": "mute", "subnet": "10.244.1.0/24"}, env=env(PATH=path))
    add(123, "no addresses left", ipam={"type": "full", "subnet": "10.244.1.0/24"}, env=env(PATH=path))
    add(11, "underlay", underlay="eth9")
    add(11, "underlay", underlay="192.0.2.77")
    add(
        11,
        "agent",
        datastore={"type": "etcd", "endpoints": ["http://192.0.2.1:2379"]},
        peers=None,
        ipam={"type": "host-local"},
    )
    add(5, "runDir", runDir="/proc/nowhere")
    done = host.run(single.words("ADD", host, pod), check=False, input="{")
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 6)
    done = host.run(single.words("ADD", host, pod), check=False, input="[]")
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 7)
    assert nothing_left(single, host)
    assert [one["ifname"] for one in pod.ip_json("link show")] == ["lo"]
    # An interface that is there stays as it is.
    single.add(pod)
    assert bad("ADD", host, pod)["code"] == 4
    single.check(pod)


def test_del_can_be_repeated_and_needs_nothing(single):
    (host,) = single.hosts
    pod = single.pod(host, "a")
    result = single.results[pod.name]
    assert len(addresses_in_use(single, host)) == 1
    single.good("DEL", host, pod, prevResult=result)
    assert nothing_left(single, host)
    assert [one["ifname"] for one in pod.ip_json("link show")] == ["lo"]
    single.good("DEL", host, pod, prevResult=result)
    # A namespace that is gone, or was never told; a container that was never there; no agent, no link.
    single.add(pod)
    single.lab.remove_namespace(pod.role)
    for netns in (str(pod.path), ""):
        single.good("DEL", host, pod, env={"CNI_NETNS": netns})
    assert nothing_left(single, host)
    host.run(["ip", "link", "del", "xm0"])
    single.good("DEL", host, Pod(host, "b"))
    store = {"type": "etcd", "endpoints": ["http://192.0.2.1:2379"]}
    single.good("DEL", host, pod, peers=None, ipam={"type": "host-local"}, datastore=store)
    single.good("DEL", host, pod, unknown="key", underlay="eth9")


def test_add_recovers_from_a_crash(single):
    (host,) = single.hosts
    pod = Pod(host, "a")
    # Killed as soon as there is an address: the worst moment, since host-local gives a container one only.
    path = script(
        single.lab,
        "deadly",
        f"""\
        {HOST_LOCAL} > "$0.out"
        status=$?
        cat "$0.out"
        [ "$CNI_COMMAND $status" = "ADD 0" ] && kill -9 $PPID
        exit $status""",
    )
    ipam = {**single.config(host)["ipam"], "type": "deadly"}
    done = single.call("ADD", host, pod, ipam=ipam, env={"CNI_PATH": path})
    assert done.returncode == -signal.SIGKILL
    assert len(addresses_in_use(single, host)) == 1
    result = single.add(pod)
    assert len(addresses_in_use(single, host)) == 1
    single.check(pod)
    single.good("DEL", host, pod, prevResult=result)
    assert nothing_left(single, host)


@pytest.mark.slow
def test_add_recovers_from_a_crash_at_any_moment(single):
    (host,) = single.hosts
    pod = Pod(host, "a")
    for tenths in range(1, 9):
        process = host.popen(single.words("ADD", host, pod), stdin=subprocess.PIPE)
        process.stdin.write(json.dumps(single.config(host)))
        process.stdin.close()
        time.sleep(tenths / 10)
        process.kill()
        process.wait()
        if tenths % 2:
            single.good("DEL", host, pod)
            assert nothing_left(single, host)
        elif process.returncode:
            single.add(pod)
            single.check(pod)
            assert len(addresses_in_use(single, host)) == len(veths(host)) == 1
        single.good("DEL", host, pod)
        assert nothing_left(single, host)


def test_parallel_adds(single):
    """All at once, with no link there yet."""
    (host,) = single.hosts
    pods = [Pod(host, f"p{n}") for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(single.add, pods))
    assert len({result["ips"][0]["address"] for result in results}) == 6
    assert len(veths(host)) == 6
    for pod in pods[1:]:
        assert pods[0].ping(pod, count=1).received == 1
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda pod: single.good("DEL", host, pod), pods))
    assert nothing_left(single, host)


def test_check_finds_what_is_wrong(single):
    (host,) = single.hosts
    pod = single.pod(host, "a")
    result = single.results[pod.name]
    mac = result["interfaces"][1]["mac"]
    (veth,) = veths(host)
    assert single.bad("CHECK", host, pod)["code"] == 7
    default = "route add default via 10.244.1.1 dev eth0"
    for where, damage, repair, text in (
        (pod, "addr del 10.244.1.2/24 dev eth0", "addr add 10.244.1.2/24 dev eth0", "lacks the address"),
        (pod, "route replace default via 10.244.1.1 dev eth0", "route del default", ""),
        (pod, "route show", default, "no route to 0.0.0.0/0"),
        (
            pod,
            "link set eth0 address 02:00:00:00:00:99",
            f"link set eth0 address {mac}",
            "link layer address",
        ),
        (host, f"route del 10.244.1.2/32 dev {veth}", f"route add 10.244.1.2/32 dev {veth}", "10.244.1.2"),
        (host, "link set xm0 down", "link set xm0 up", "xm0 is down"),
        (host, f"link set {veth} down", f"link set {veth} up", veth),
        (host, f"route replace 10.244.1.2/32 dev {veth}", "link del xm0", ""),
        (host, "route show", "route show", "xm0 is missing"),
    ):
        where.ip(damage)
        if text:
            error = single.bad("CHECK", host, pod, prevResult=result)
            assert (error["code"], text in error["msg"]) == (101, True), error
        where.ip(repair)
    single.pod(host, "b")  # makes the link again
    single.check(pod)
    single.lab.remove_namespace(pod.role)
    assert single.bad("CHECK", host, pod, prevResult=result)["code"] in (3, 101)


def test_gc(single):
    (host,) = single.hosts
    keep, gone, crashed = (single.pod(host, name) for name in ("keep", "gone", "crashed"))
    single.lab.remove_namespace(gone.role)
    # Only the device tells of this one.
    for path in records(single, host):
        if crashed.id in path.read_text():
            path.unlink()
    assert single.bad("GC", host)["code"] == 7
    assert len(addresses_in_use(single, host)) == 3
    valid = [{"containerID": keep.id, "ifname": "eth0"}]
    for _ in range(2):
        single.good("GC", host, **{"cni.dev/valid-attachments": valid})
        assert addresses_in_use(single, host) == {keep.address}
        assert len(veths(host)) == len(records(single, host)) == 1
    single.check(keep)
    single.good("GC", host, **{"cni.dev/valid-attachments": []})
    assert nothing_left(single, host)


def test_status(single):
    (host,) = single.hosts
    assert single.good("STATUS", host) == {}  # ADD would make the link
    pod = single.pod(host, "a")
    assert single.good("STATUS", host) == {}
    host.ip("link set xm0 down")
    assert single.bad("STATUS", host)["code"] == 51
    single.pod(host, "b")  # puts it right
    assert single.good("STATUS", host) == {}
    assert single.bad("STATUS", host, ipam={"type": "none", "subnet": "10.244.1.0/24"})["code"] == 50
    assert single.bad("STATUS", host, underlay="eth9")["code"] == 50
    store = {"type": "etcd", "endpoints": ["http://192.0.2.1:2379"]}
    error = single.bad("STATUS", host, peers=None, ipam={"type": "host-local"}, datastore=store)
    assert error["code"] == 50
    assert "agent" in error["msg"]
    single.check(pod)


def test_peers_and_addresses_change(network):
    one, two = network.hosts
    a, b = network.pod(one, "a"), network.pod(two, "b")
    assert a.ping(b, count=3).received == 3
    # The other node gets another address: both configurations say so.
    two.ip("addr del 192.0.2.2/24 dev eth0", "addr add 192.0.2.22/24 dev eth0")
    two.address = "192.0.2.22"
    network.pod(two, "b2")
    network.pod(one, "a2")
    assert two.ip_json("link show xm0")[0]["linkinfo"]["info_data"]["local"] == "192.0.2.22"
    assert a.ping(b, count=3).received == 3
    fdb = [e for e in json.loads(one.run("bridge -j fdb show dev xm0").stdout) if "dst" in e]
    assert [e["dst"] for e in fdb] == ["192.0.2.22"]
    network.check(a)
    network.check(b)
    # A foreign route and neighbour stay, ours go with the peer.
    one.ip("route add 10.99.0.0/24 via 192.0.2.22 dev eth0")
    network.pod(one, "a3", peers=[])
    assert one.ip_json("route show dev xm0") == []
    assert one.ip_json("neigh show dev xm0") == []
    assert not [e for e in json.loads(one.run("bridge -j fdb show dev xm0").stdout) if "dst" in e]
    assert len(one.ip_json("route show 10.99.0.0/24")) == 1


def test_a_link_of_somebody_else_is_left_alone(single):
    (host,) = single.hosts
    host.ip("link add xm0 type vxlan id 9 local 192.0.2.1 dstport 8472")
    error = single.bad("ADD", host, Pod(host, "a"))
    assert error["code"] == 7
    assert "VNI 9" in error["msg"]
    assert nothing_left(single, host)
    assert host.ip_json("link show xm0")[0]["linkinfo"]["info_data"]["id"] == 9


def test_masquerade(lab):
    """Out of the network with the node's address, within it with their own."""
    hosts = lab.hosts(3)
    network = Network(lab, hosts[:2], more={"ipMasq": True})
    outside = hosts[2]
    a, b = network.pod(hosts[0], "a"), network.pod(hosts[1], "b")
    network.pod(hosts[0], "a2")  # once more with the rules there
    seen = outside.popen(["tcpdump", "-lnni", "eth0", "-c", "1", "icmp[icmptype] == icmp-echo"])
    assert seen.stderr is not None
    while "listening" not in seen.stderr.readline():
        pass
    assert a.ping(outside, count=2).received == 2
    out, _ = seen.communicate(timeout=patience(5))
    assert f"IP {hosts[0].address} > {outside.address}" in out
    assert tcp_transfer(a, outside, 1_000_000).size == 1_000_000
    assert a.ping(b, count=5).received == 5
    assert stats(hosts[0])["encoded"] > 0
    assert CLUSTER in hosts[0].run("nft list ruleset").stdout


def test_two_address_families(lab):
    """IPv4 over one link, IPv6 over another; both are encoded."""
    network = Network(lab, lab.hosts(2, ipv6=True))
    one, two = network.hosts
    pods = []
    for host, other in ((one, two), (two, one)):
        ranges = [[{"subnet": network.subnet(host)}], [{"subnet": f"2001:db8:1:{host.number}::/64"}]]
        pod = network.pod(
            host,
            "a",
            network=[CLUSTER, "2001:db8:1::/48"],
            peers=[
                {"subnet": network.subnet(other), "address": other.addresses[4]},
                {"subnet": f"2001:db8:1:{other.number}::/64", "address": other.addresses[6]},
            ],
            ipam={
                **network.config(host)["ipam"],
                "ranges": ranges,
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        )
        pods.append(pod)
    a, b = pods
    assert a.ping(b, count=5).received == 5
    assert tcp_transfer(a, b, 1_000_000).size == 1_000_000
    for pod in pods:
        pod.address = network.results[pod.name]["ips"][1]["address"].partition("/")[0]
    assert a.ping(b, count=5).received == 5
    script = (
        "import socket; "
        f"s = socket.create_server(({b.address!r}, 9), family=socket.AF_INET6); c, _ = s.accept(); "
        "print(sum(len(d) for d in iter(lambda: c.recv(65536), b'')))"
    )
    server = b.popen(["python3", "-c", script])
    b.wait_for_port(9)
    with a.socket(family=socket.AF_INET6, kind=socket.SOCK_STREAM) as client:
        client.settimeout(10)
        client.connect((b.address, 9))
        client.sendall(bytes(3_000_000))
    assert server.communicate(timeout=patience(10))[0] == "3000000\n"
    for link in ("xm0", "xm0-6"):
        counted = stats(one, link)
        assert counted["encoded"] > 10 > counted["error"]
        assert counted["fallback"] < counted["encoded"]


def test_a_wanted_link_address(single):
    (host,) = single.hosts
    pod = single.pod(host, "a", runtimeConfig={"mac": "02:AA:BB:CC:DD:EE"})
    assert pod.ip_json("link show eth0")[0]["address"] == "02:aa:bb:cc:dd:ee"
    other = Pod(host, "b")
    assert single.bad("ADD", host, other, runtimeConfig={"mac": "03:00:00:00:00:01"})["code"] == 7
