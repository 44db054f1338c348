# SPDX-License-Identifier: Apache-2.0
"""The checker sees what it is there for: a network that does wrong is found out, in either family."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.lab import Container, Host, Lab, Overlay, routed_overlay

from ..e2e.observe import until
from .tagged import Result, Tagged, mesh

pytestmark = pytest.mark.e2e


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def plain(request: pytest.FixtureRequest) -> Iterator[Overlay]:
    with Lab() as lab:
        yield routed_overlay(lab.hosts(2, family=request.param), "vxlan", containers=2)


def sent(overlay: Overlay) -> int:
    """How many packets the hosts have sent to each other."""
    return sum(host.ip_json("-s link show xm0")[0]["stats64"]["tx"]["packets"] for host in overlay.hosts)


def result(overlay: Overlay, wrong: Callable[[], None] = lambda: None) -> Result:
    """A run of 200 datagrams and more, and as many after the network has begun to do wrong."""
    with Tagged(overlay.hosts[0].lab, mesh(overlay), rate=500, seconds=60) as tagged:
        for step in (lambda: None, wrong):
            step()
            before = sent(overlay)
            until(lambda before=before: sent(overlay) > before + 200, "datagrams are sent")
        return tagged.stop()


def give(where: Container | Host, device: str, container: Container) -> None:
    """Gives a device an address that is a container's already."""
    prefix = "/128 nodad" if ":" in container.address else "/32"
    where.ip(f"addr add {container.address}{prefix} dev {device}")


def test_a_network_that_does_right(plain):
    found = result(plain)
    tally = found.of(plain.vni)
    assert tally.sent > 400
    assert (tally.lost, tally.misdelivered, tally.duplicated, found.corrupt) == (0, 0, 0, 0)
    assert not tally.at_host


def test_datagrams_at_a_wrong_container(plain):
    *_, right, wrong = plain.containers

    def swap() -> None:
        give(wrong, "eth0", right)
        wrong.host.ip(f"route replace {right.address} dev {wrong.veth}")

    tally = result(plain, swap).of(plain.vni)
    assert tally.misdelivered > 10
    assert {text.split(",")[0].partition(" at ")[2] for _, text in tally.astray} == {wrong.name}
    assert all(f"> {right.address} " in text for _, text in tally.astray)
    assert tally.lost >= tally.misdelivered
    assert not tally.at_host


def test_datagrams_at_a_host(plain):
    def take() -> None:
        give(plain.hosts[1], "lo", plain.containers[-1])

    tally = result(plain, take).of(plain.vni)
    assert len(tally.at_host) > 10
    assert tally.lost >= len(tally.at_host)
    assert tally.misdelivered == 0


def test_a_wrong_sender(plain):
    def pretend() -> None:
        family = "ip" if plain.inner == 4 else "ip6"
        one, other = plain.containers[:2]
        plain.hosts[0].run(
            ["nft", "-f", "-"],
            input=f"add table {family} wrong\n"
            f"add chain {family} wrong out {{ type filter hook forward priority 0; }}\n"
            f"add rule {family} wrong out {family} saddr {one.address} {family} saddr set {other.address}\n",
        )

    tally = result(plain, pretend).of(plain.vni)
    assert tally.misdelivered > 10
    other = plain.containers[1]
    assert all(f"as if from {other.address}:" in text for _, text in tally.astray)
    assert not tally.at_host
