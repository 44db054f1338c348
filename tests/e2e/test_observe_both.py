# SPDX-License-Identifier: Apache-2.0
"""Those who look see both families of the underlay, and peers that only speak VXLAN."""

from __future__ import annotations

import pytest

import xmasq_link
from tests.e2e.observe import until
from tests.lab import routed_overlay

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("family", [4, 6])
def test_all_that_looks(lab, family):
    overlay = routed_overlay(lab.hosts(2, ipv6=True), family=family)
    a, b = overlay.containers
    here = a.host.name
    peer = b.host.addresses[family]
    with (
        xmasq_link.monitor(netns=here) as events,
        xmasq_link.capture("xm0", netns=here) as packets,
        xmasq_link.meter("xm0", netns=here) as meter,
    ):
        assert a.ping(b, count=10).lost == 0
        found = until(
            lambda: [e for e in events.read(0.1) if e.kind == "flow_encoded"], "the flow is encoded"
        )
        assert (found[0].source, found[0].destination, found[0].peer) == (a.address, b.address, peer)
        echoes = [f for f in packets.read(1) if " echo " in str(f)]
        assert [f.direction for f in echoes] == ["out", "in"] * 10
        rates = {(f.source, f.destination): f for f in meter.read().flows}
        assert rates[a.address, b.address].peer == peer
        explained = xmasq_link.explain("xm0", a.address, b.address, netns=here)
    assert (explained.encoded, explained.peer) == (True, peer)
    wrong = [f for f in xmasq_link.diagnose(netns=here) if f.level in ("warning", "fault")]
    assert wrong == []
    (known,) = xmasq_link.peers(netns=here)
    assert (known.peer, known.verdict) == (peer, "ok")


def test_a_peer_that_only_speaks_vxlan(lab):
    overlay = routed_overlay(lab.hosts(2), ["xmasq", "vxlan"])
    a, b = overlay.containers
    assert xmasq_link.peers(netns=a.host.name) == []
    assert a.ping(b, count=3).lost == 0
    (peer,) = xmasq_link.peers(netns=a.host.name)
    assert (peer.peer, peer.verdict, peer.heard_ms_ago, peer.flows) == (b.host.address, "vxlan", None, 0)
    assert xmasq_link.explain("xm0", a.address, b.address, netns=a.host.name).encoded is False
