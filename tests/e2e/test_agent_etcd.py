# SPDX-License-Identifier: Apache-2.0
"""Nodes that find each other by etcd: they join, move, leave, and survive what etcd does."""

from __future__ import annotations

import json
import shutil
import signal
import ssl
import time

import pytest

from tests.lab import Lab, patience, tcp_transfer
from tests.lab.process import run

from .cni import Network, Pod
from .etcd import Agent, Etcd, fdb, routes
from .observe import stats, until

pytestmark = pytest.mark.e2e


@pytest.fixture
def etcd(lab: Lab) -> Etcd:
    return Etcd(lab.host())


def make(lab: Lab, etcd: Etcd, count: int = 2, **options: object) -> Network:
    store = {"type": "etcd", "endpoints": [etcd.url], **options}
    return Network(lab, lab.hosts(count), more={"datastore": store})


def subnet_of(agent: Agent) -> str:
    (subnet,) = json.loads(agent.state().read_text())["subnets"]
    return str(subnet)


def join(network: Network) -> list[Agent]:
    agents = [Agent(network, host) for host in network.hosts]
    for agent in agents:
        agent.ready()
    for agent in agents:
        agent.ready(*(subnet_of(other) for other in agents if other is not agent))
    return agents


def test_nodes_join_move_and_leave(lab, etcd):
    network = make(lab, etcd, 3)
    one, two, three = network.hosts
    first, second = Agent(network, one), Agent(network, two)
    first.ready()
    second.ready(subnet_of(first))
    first.ready(subnet_of(second))
    assert subnet_of(first) != subnet_of(second)
    a, b = network.pod(one, "a"), network.pod(two, "b")
    assert network.good("STATUS", one) == {}
    assert a.ping(b, count=5).received == 5
    assert tcp_transfer(a, b, 2_000_000).size == 2_000_000
    assert stats(one)["encoded"] > 0
    # A third joins.
    third = Agent(network, three)
    third.ready(subnet_of(first), subnet_of(second))
    first.ready(subnet_of(third))
    c = network.pod(three, "c")
    assert a.ping(c, count=3).received == 3
    # It moves to another address, and its containers stay reachable.
    three.ip("addr del 192.0.2.4/24 dev eth0", "addr add 192.0.2.44/24 dev eth0")
    three.address = "192.0.2.44"
    want = {two.address, three.address}
    until(lambda: set(fdb(one).values()) == want, third.said() + first.said(), timeout=20)
    until(lambda: a.ping(c, count=1, wait=0.3).received, "c answers at the new address", timeout=10)
    assert a.ping(c, count=10).received == 10
    # It leaves.
    assert third.stop() == 128 + signal.SIGTERM
    assert subnet_of(third) in routes(one)  # an agent that ends, for an upgrade say, changes nothing
    assert three.run(third.command("leave")).stdout == "left the network\n"
    until(lambda: subnet_of(second) in routes(one) and len(routes(one)) == 1, "the route is gone", timeout=10)
    until(lambda: set(fdb(one).values()) == {two.address}, "the FDB entry is gone", timeout=10)
    assert len(one.ip_json("neigh show dev xm0 nud permanent")) == 1
    assert [x["ifname"] for x in three.ip_json("link show") if x["ifname"] == "xm0"] == []
    assert "h4" not in etcd.subnets()
    assert a.ping(b, count=3).received == 3


def test_outages_of_etcd(lab, etcd):
    """Down, restarted, restarted without its data: traffic goes on, and changes are followed afterwards."""
    network = make(lab, etcd, lease=6)
    agents = join(network)
    one, two = network.hosts
    a, b = network.pod(one, "a"), network.pod(two, "b")
    assert a.ping(b, count=5).received == 5
    before = etcd.subnets()
    assert len(before) == 2

    etcd.stop()
    for agent in agents:
        until(lambda agent=agent: "stays as it is" in agent.said(), agent.said(), timeout=40)
    assert a.ping(b, count=20).received == 20
    # Longer than the lease; and agents that start now find everything as it was.
    assert agents[0].stop(signal.SIGKILL) == -signal.SIGKILL
    agents[0].start()
    deadline = time.monotonic() + 7
    while time.monotonic() < deadline:
        assert a.ping(b, count=10, interval=0.05).received == 10
    network.pod(one, "a2")

    etcd.start()
    three = lab.host()
    network.hosts.append(three)
    newcomer = Agent(network, three)
    newcomer.ready(*before.values())
    for agent in agents:
        agent.ready(subnet_of(newcomer))
    assert {**etcd.subnets(), **before} == etcd.subnets()
    assert a.ping(b, count=20).received == 20

    etcd.stop()
    shutil.rmtree(etcd.data)
    etcd.start()
    answered = lost = 0
    deadline = time.monotonic() + patience(40)
    while len(etcd.subnets()) < 3 and time.monotonic() < deadline:
        result = a.ping(b, count=10, interval=0.02)
        answered += result.received
        lost += result.lost
    assert lost == 0
    assert etcd.subnets() == {**before, three.role: subnet_of(newcomer)}
    assert a.ping(b, count=20).received == 20


def test_a_dead_node_goes_with_its_lease(lab, etcd):
    network = make(lab, etcd, lease=3)
    agents = join(network)
    agents[1].stop(signal.SIGKILL)
    until(lambda: not routes(network.hosts[0]), agents[0].said(), timeout=20)
    # The subnet is free again, and the node gets the one that it had.
    had = subnet_of(agents[1])
    assert list(etcd.subnets()) == [network.hosts[0].role]
    agents[1].start()
    agents[0].ready(had)


def test_everything_is_put_right_at_the_start(lab, etcd):
    network = make(lab, etcd)
    agents = join(network)
    one = network.hosts[0]
    agents[0].stop()
    good = routes(one), fdb(one)
    one.ip(
        "route add 10.244.200.0/24 via 10.244.200.0 dev xm0 onlink proto 120",
        "neigh add 10.244.200.0 lladdr 02:78:c0:00:02:c8 dev xm0 nud permanent",
        "route add 10.99.0.0/24 via 192.0.2.99 dev eth0",
        f"route del {subnet_of(agents[1])}",
    )
    one.bridge(
        "fdb add 02:78:c0:00:02:c8 dev xm0 dst 192.0.2.200",
        *(f"fdb replace {mac} dev xm0 dst 192.0.2.201" for mac in good[1]),
    )
    agents[0].start()
    until(lambda: (routes(one), fdb(one)) == good, agents[0].said(), timeout=20)
    assert len(one.ip_json("neigh show dev xm0 nud permanent")) == 1
    assert len(one.ip_json("route show 10.99.0.0/24")) == 1
    # A link that goes is made again.
    one.ip("link del xm0")
    until(lambda: (routes(one), fdb(one)) == good if routes(one) else False, agents[0].said(), timeout=20)
    # A second agent is refused, and one that is gone is noticed.
    refused = one.run(agents[0].command(), check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == 'xmasq: an agent for the network "pods" runs already\n'
    assert network.good("STATUS", one) == {}
    agents[0].stop()
    assert network.bad("STATUS", one)["code"] == 51


def test_a_subnet_belongs_to_one_node(lab, etcd):
    """Many nodes at once get different ones; a fixed one of another node is refused; none left."""
    network = make(lab, etcd, 4)
    network.more |= {"network": "10.244.0.0/22"}
    join(network)
    assert len(set(etcd.subnets().values())) == 4
    late = lab.host()
    network.hosts.append(late)
    agent = Agent(network, late)
    until(lambda: "no free subnet" in agent.said(), "the network is full", timeout=20)
    assert network.bad("ADD", late, Pod(late, "a"))["code"] == 11
    time.sleep(4)
    assert agent.said().count("no free subnet") == 1  # said once, however often it is tried
    agent.stop()
    taken = etcd.subnets()["h2"]
    network.more |= {"subnet": taken}
    agent.start()
    until(lambda: 'belongs to the node "h2"' in agent.said(), agent.said(), timeout=20)
    assert etcd.subnets()["h2"] == taken


def certificates(lab: Lab, address: str) -> dict[str, str]:
    """A CA, a server's certificate and a client's; paths by what they are."""
    paths = {name: str(lab.tmp / name) for name in ("ca.pem", "ca.key")}
    new = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    run([*new, "-subj", "/CN=ca", "-keyout", paths["ca.key"], "-out", paths["ca.pem"]])
    for name, alternative in (("server", f"IP:{address}"), ("client", "DNS:client")):
        key, cert = (str(lab.tmp / f"{name}.{end}") for end in ("key", "pem"))
        sign = ["-CA", paths["ca.pem"], "-CAkey", paths["ca.key"], "-addext", f"subjectAltName={alternative}"]
        sign += ["-addext", "basicConstraints=critical,CA:FALSE"]
        # No CN: etcd refuses it at its gateway, as it would have to stand for a user.
        run([*new, "-subj", f"/O={name}", *sign, "-keyout", key, "-out", cert])
        paths |= {f"{name}.key": key, f"{name}.pem": cert}
    return paths


@pytest.mark.slow
def test_tls_and_users(lab):
    host = lab.host()
    paths = certificates(lab, host.address)
    tls = ["--cert-file", paths["server.pem"], "--key-file", paths["server.key"]]
    tls += ["--client-cert-auth", "--trusted-ca-file", paths["ca.pem"]]
    etcd = Etcd(host, "https", *tls)
    etcd.context = ssl.create_default_context(cafile=paths["ca.pem"])
    etcd.context.load_cert_chain(paths["client.pem"], paths["client.key"])
    etcd.call("/v3/auth/user/add", {"name": "root", "password": "of all"})
    etcd.call("/v3/auth/role/add", {"name": "root"})
    etcd.call("/v3/auth/user/grant", {"user": "root", "role": "root"})
    etcd.call("/v3/auth/enable", {})
    password = lab.tmp / "password"
    password.write_text("of all\n")
    good = {
        "caFile": paths["ca.pem"],
        "certFile": paths["client.pem"],
        "keyFile": paths["client.key"],
        "username": "root",
        "passwordFile": str(password),
    }
    network = make(lab, etcd, 2, **good)
    agents = join(network)
    # A token that etcd has forgotten is asked for again.
    etcd.stop()
    etcd.start()
    three = lab.host()
    network.hosts.append(three)
    newcomer = Agent(network, three)
    newcomer.ready(*(subnet_of(agent) for agent in agents))
    for agent in agents:
        agent.ready(subnet_of(newcomer))
    newcomer.stop()
    password.write_text("another\n")
    for change, text in (
        ({}, "authentication failed"),
        ({"passwordFile": "/nonexistent"}, "datastore.passwordFile: /nonexistent: No such file"),
        ({"caFile": None, "username": None, "passwordFile": None}, "CERTIFICATE_VERIFY_FAILED"),
        ({"username": None, "passwordFile": None}, "permission denied"),
    ):
        options = {key: value for key, value in {**good, **change}.items() if value is not None}
        network.more["datastore"] = {"type": "etcd", "endpoints": [etcd.url], **options}
        newcomer.start()
        until(lambda text=text: text in newcomer.said(), f"{text}\n{newcomer.said()}", timeout=20)
        newcomer.stop()


@pytest.mark.slow
def test_two_address_families(lab):
    etcd = Etcd(lab.host())
    network = make(lab, etcd, 0)
    network.more["network"] = ["10.244.0.0/16", "2001:db8:1::/48"]
    network.hosts += lab.hosts(2, ipv6=True)
    agents = [Agent(network, host) for host in network.hosts]
    for agent in agents:
        agent.ready()
    subnets = [json.loads(agent.state().read_text())["subnets"] for agent in agents]
    assert all(len(of_node) == 2 for of_node in subnets)
    for agent, (_, other) in zip(agents, reversed(subnets), strict=True):
        route = f"-6 route show {other} proto 120"
        until(lambda agent=agent, route=route: agent.host.ip_json(route), agent.said(), timeout=20)
    a, b = (network.pod(host, "a") for host in network.hosts)
    for number in (0, 1):
        for pod in (a, b):
            pod.address = network.results[pod.name]["ips"][number]["address"].partition("/")[0]
        assert a.ping(b, count=5).received == 5
    assert stats(a.host, "xm0-6")["encoded"] > 0
