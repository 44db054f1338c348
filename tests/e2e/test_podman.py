# SPDX-License-Identifier: Apache-2.0
"""Real containers, run by podman on two hosts, with real programs of the distribution in them."""

from __future__ import annotations

import shutil

import pytest

from tests.lab import Lab

from .cni import Network
from .observe import stats
from .podman import Podman

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(
        any(shutil.which(program) is None for program in ("podman", "crun", "redis-server", "curl")),
        reason="apt-get install --no-install-recommends podman redis-server curl",
    ),
]


@pytest.fixture
def hosts(lab: Lab) -> list[Podman]:
    network = Network(lab, lab.hosts(2), version="1.0.0")
    return [Podman(network, host) for host in network.hosts]


def share_encoded(podman: Podman) -> float:
    """Which part of the packets that left a host's link was encoded."""
    counted = stats(podman.host)
    return counted["encoded"] / (counted["encoded"] + counted["fallback"])


def test_http_and_redis_between_hosts(hosts, capsys):
    one, two = hosts
    size = 20_000_000
    web = one.run(
        "web", "sh", "-c", f"cd /srv && head -c {size} /dev/urandom > file && exec python3 -m http.server 80"
    )
    store = two.run("store", "redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "")
    two.run("client", "sleep", "300")
    # HTTP from one host to the other.
    two.wait("client", "curl", "-fsS", "-o", "/dev/null", f"http://{web}/")
    sums = [one.exec("web", "sha256sum", "/srv/file").split()[0]]
    for _ in range(3):
        two.exec("client", "curl", "-fsS", "-m", "30", "-o", "/srv/got", f"http://{web}/file")
        sums.append(two.exec("client", "sha256sum", "/srv/got").split()[0])
    assert len(set(sums)) == 1
    # Redis the other way round, from a container that ends by itself.
    ping = one.run("ping", "redis-cli", "-h", store, "ping", detach=False)
    assert ping == "PONG\n"
    report = one.run(
        "load",
        *(
            "redis-benchmark",
            "-h",
            store,
            "-t",
            "set,get,lpush",
            "-n",
            "20000",
            "-d",
            "512",
            "-c",
            "20",
            "-q",
        ),
        detach=False,
    )
    assert report.count("requests per second") == 3
    assert one.run("read", "redis-cli", "-h", store, "llen", "mylist", detach=False) == "20000\n"
    # Full-size packets, since the MTU is the underlay's.
    assert two.exec("client", "cat", "/sys/class/net/eth0/mtu") == "1500\n"
    shares = [share_encoded(podman) for podman in hosts]
    with capsys.disabled():
        print(f"\nencoded: {shares[0]:.2%} of host 1's packets, {shares[1]:.2%} of host 2's")
    assert min(shares) > 0.9
    for podman in hosts:
        counted = stats(podman.host)
        assert counted["error"] == counted["bounced"] == 0
    # Nothing is left when the containers are gone.
    for podman in hosts:
        podman.remove_all()
        left = [link["ifname"] for link in podman.host.ip_json("link show")]
        assert not [name for name in left if name.startswith("xmq")]
