# SPDX-License-Identifier: Apache-2.0
"""Nodes that find each other by the Kubernetes API, which a stand-in serves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.lab import Lab, tcp_transfer

from .cni import Network, Pod
from .etcd import Agent, fdb, routes
from .kubernetes import Kubernetes
from .observe import stats, until

pytestmark = pytest.mark.e2e

ANNOTATION = "xmasq/pods"


@pytest.fixture
def api(lab: Lab) -> Kubernetes:
    return Kubernetes(lab.host())


def make(lab: Lab, api: Kubernetes, count: int) -> tuple[Network, list[Agent]]:
    store = {"type": "kubernetes", "kubeconfig": api.kubeconfig()}
    network = Network(lab, lab.hosts(count), more={"datastore": store, "network": None})
    for host in network.hosts:
        api.add(host, [network.subnet(host)])
    agents = [Agent(network, host) for host in network.hosts]
    for agent in agents:
        agent.ready(*(network.subnet(other) for other in network.hosts if other is not agent.host))
    return network, agents


def test_nodes_join_move_and_leave(lab, api):
    network, agents = make(lab, api, 2)
    one, two = network.hosts
    a, b = network.pod(one, "a"), network.pod(two, "b")
    assert a.address.startswith(f"10.244.{one.number}.")
    assert a.ping(b, count=3).received == 3
    assert tcp_transfer(a, b, 2_000_000).size == 2_000_000
    assert stats(one)["encoded"] > 0
    said = json.loads(api.nodes[one.role]["metadata"]["annotations"][ANNOTATION])
    assert [item["address"] for item in said] == [one.address]
    assert {r.partition(" ")[0] for r in api.requests if r.endswith("merge-patch+json")} == {"PATCH"}
    # A node that has no subnet yet gets one; what it has to wait for is said.
    three = lab.host()
    api.add(three, [])
    network.hosts.append(three)
    third = Agent(network, three)
    until(lambda: "has no podCIDR" in third.said(), third.said(), timeout=20)
    assert network.bad("ADD", three, Pod(three, "early"))["code"] == 11
    api.nodes[three.role]["spec"] = {"podCIDR": network.subnet(three), "podCIDRs": [network.subnet(three)]}
    third.ready(network.subnet(one), network.subnet(two))
    agents[0].ready(network.subnet(three))
    # A node moves, and another one is deleted.
    two.ip("addr del 192.0.2.3/24 dev eth0", "addr add 192.0.2.33/24 dev eth0")
    two.address = "192.0.2.33"
    until(lambda: "192.0.2.33" in fdb(one).values(), agents[0].said(), timeout=20)
    until(lambda: a.ping(b, count=1, wait=0.3).received, "b answers at the new address", timeout=10)
    third.stop()
    api.delete(three.role)
    until(lambda: list(routes(one)) == [network.subnet(two)], agents[0].said(), timeout=20)
    until(lambda: set(fdb(one).values()) == {two.address}, agents[0].said(), timeout=20)
    # One that leaves takes its annotation along.
    agents[1].stop()
    two.run(agents[1].command("leave"))
    until(lambda: not routes(one), agents[0].said(), timeout=20)
    assert ANNOTATION not in api.nodes[two.role]["metadata"]["annotations"]


def test_outages_and_lies(lab, api):
    network, agents = make(lab, api, 2)
    one, two = network.hosts
    a, b = network.pod(one, "a"), network.pod(two, "b")
    # The API goes away; meanwhile a node is added, and what has happened is forgotten.
    api.stop()
    for agent in agents:
        until(lambda agent=agent: "stays as it is" in agent.said(), agent.said(), timeout=20)
    assert a.ping(b, count=10).received == 10
    three = lab.host()
    api.add(three, [network.subnet(three)])
    mac = "02:78:c0:00:02:04"
    api.change(three.role, **{ANNOTATION: json.dumps([{"address": three.address, "mac": mac}])})
    api.compact()
    api.start()
    for host in (one, two):
        until(lambda host=host: network.subnet(three) in routes(host), agents[0].said(), timeout=30)
    # A watch that is told that its revision is too old lists again.
    api.limit = 0.5
    api.stop()
    api.start()
    count = {request: api.requests.count(request) for request in ("GET /api/v1/nodes", "WATCH /api/v1/nodes")}
    until(
        lambda: api.requests.count("WATCH /api/v1/nodes") > count["WATCH /api/v1/nodes"] + 6,
        "the agents watch again and again",
        timeout=30,
    )
    lists = api.requests.count("GET /api/v1/nodes")
    assert lists <= count["GET /api/v1/nodes"] + 4  # a watch that ends in good order costs no list
    api.version += 10
    api.compact()
    until(lambda: api.requests.count("GET /api/v1/nodes") >= lists + 2, "both list again", timeout=30)
    assert a.ping(b, count=5).received == 5
    # What a node says of itself can not give it another's subnet, and nonsense is nothing.
    lie = [{"address": three.address, "mac": mac, "subnet": network.subnet(two)}]
    api.change(three.role, **{ANNOTATION: json.dumps(lie)})
    api.change(two.role, unrelated="change")
    assert a.ping(b, count=5).received == 5
    for nonsense in ("[", '{"address": 1}', '[{"address": "224.0.0.1", "mac": "x"}]', "[[]]", '"text"'):
        api.change(three.role, **{ANNOTATION: nonsense})
    until(lambda: list(routes(one)) == [network.subnet(two)], agents[0].said(), timeout=20)
    until(lambda: set(fdb(one).values()) == {two.address}, agents[0].said(), timeout=20)
    assert a.ping(b, count=5).received == 5
    # An agent that is not allowed says so, and goes on.
    agents[0].stop()
    path = network.directory(one) / "bad"
    kubeconfig = json.loads(Path(api.kubeconfig()).read_text())
    kubeconfig["users"][0]["user"]["token"] = "wrong"
    path.write_text(json.dumps(kubeconfig))
    network.more["datastore"] = {"type": "kubernetes", "kubeconfig": str(path)}
    agents[0].start()
    until(lambda: "401 Unauthorized" in agents[0].said(), agents[0].said(), timeout=20)
    assert a.ping(b, count=5).received == 5
    # One whose configuration cannot be right ends.
    network.more["datastore"] = {"type": "kubernetes", "kubeconfig": "/nonexistent"}
    agents[0].stop()
    done = one.run(agents[0].command(), check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("xmasq: datastore: ")
    assert done.stderr.count("\n") == 1
