# SPDX-License-Identifier: Apache-2.0
"""No datagram to the wrong place, and none lost by our doing, under every fault.

Each test takes 4 to 11 seconds, all of them about two minutes with two workers. The long forms take
about a minute each (tests/trust/conftest.py).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

import xmasq_link
from tests.lab import Lab

from . import faults
from .middlebox import CONTROL, Rule
from .tagged import Flow, cross, mesh
from .world import SENT_MIN, TWIN_VNI, VNI, Outcome, World, run, twin

pytestmark = pytest.mark.e2e

#: How many times as long as the short form a test runs.
length = pytest.mark.parametrize(
    "length", [pytest.param(1, id="short"), pytest.param(10, id="long", marks=pytest.mark.slow)]
)


#: A test that runs over an IPv4 and over an IPv6 underlay, with containers' addresses of the same family.
families = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def sound(outcome: Outcome, *, by_chance: bool = False) -> None:
    """Nothing went astray, and no more was lost than over vxlan."""
    assert outcome.x.sent > SENT_MIN
    assert not outcome.problems(by_chance=by_chance)


def lossless(outcome: Outcome) -> None:
    """The same, and nothing was lost at all while the network was there."""
    sound(outcome)
    assert outcome.lost()[0] == 0


# The underlay loses, doubles and swaps


@length
@families
@pytest.mark.parametrize(("percent", "share"), [(1, 0.9), (20, 0.5), (60, 0.02)])
def test_underlay_loss(lab, family, percent, share, length):
    world = World(lab, family=family)
    outcome = run(world, "loss", faults.loss(percent, 2.5 * length))
    sound(outcome, by_chance=True)
    assert outcome.share > share


@length
def test_loss_by_chance_is_no_verdict_against_the_path(lab, length):
    # Short bursts and long idle gaps: whatever is lost, no sender may conclude that the path eats packets.
    world = World(lab, lease=2, compare=False)
    flows = mesh(world.x, burst=20, pace=0.002, gaps=(0.9, 1.1, 1.3))
    outcome = run(world, "loss", faults.loss(10, 5 * length), flows=flows, after=0)
    assert outcome.result.misdelivered == 0
    assert outcome.counters["path_off"] == 0


@length
@families
def test_duplication(lab, family, length):
    world = World(lab, family=family)
    world.box.rules()
    fault = faults.boxed(2 * length, Rule("duplicate", 20), Rule("duplicate", 20, high=0.05))
    outcome = run(world, "duplication", fault)
    lossless(outcome)
    assert outcome.share > 0.9
    assert outcome.x.duplicated > 20


@length
@families
def test_reordering(lab, family, length):
    world = World(lab, family=family)
    world.box.rules()
    outcome = run(world, "reordering", faults.boxed(2 * length, Rule("delay", 30, high=0.03)))
    lossless(outcome)
    assert outcome.share > 0.9
    assert outcome.x.reordered > 20  # it did happen; how often depends on how close packets come


@length
def test_old_control_packets_come_again(lab, length):
    # Copies of control packets arrive up to twice lease and guard later.
    world = World(lab, lease=1)
    world.box.rules()
    fault = faults.boxed(4 * length, Rule("duplicate", only=CONTROL, high=6))
    outcome = run(world, "old control packets", fault)
    lossless(outcome)
    assert outcome.share > 0.7


@length
@pytest.mark.parametrize(("host", "percent"), [(0, 30), (1, 100)])
def test_loss_of_control_packets_one_way(lab, host, percent, length):
    world = World(lab)
    rule = lab.fabric.loss(percent, only=faults.CONTROL, host=world.hosts[host])
    outcome = run(world, "control loss", lambda world: time.sleep(2 * length))
    lossless(outcome)
    assert rule.packets > 0
    if percent == 100:
        # Of OFFER, ACCEPT and CONFIRM at least one comes from this host, whichever way the flow goes.
        assert outcome.counters["encoded"] == 0
    else:
        assert outcome.share > 0.1


# Middleboxes


@length
def test_middlebox_bleaches_dscp(lab, length):
    world = World(lab)
    lab.fabric.dscp_bleach(host=world.hosts[0])
    outcome = run(world, "bleaching", lambda world: time.sleep(2 * length))
    lossless(outcome)
    assert outcome.counters["encoded"] == 0


@length
@pytest.mark.parametrize("direction", ["from", "to"])
def test_middlebox_rewrites_ids(lab, direction, length):
    world = World(lab)
    lab.fabric.id_rewrite(host=world.hosts[0], direction=direction)
    outcome = run(world, "rewritten IDs", lambda world: time.sleep(2 * length))
    lossless(outcome)
    # A random ID is the right one once in 65,536 times.
    assert outcome.counters["encoded"] == 0
    assert outcome.counters["ctl_path"] > 0


@length
def test_middlebox_begins_to_bleach_dscp(lab, length):
    # Until the leases end, what is encoded is lost, or reaches the host's own stack; then nothing is.
    world = World(lab, lease=1)
    outcome = run(world, "bleaching later", faults.bleaching(2.5 * length), after=0)
    lossless(outcome)
    assert outcome.x.lost > 0


@length
def test_middlebox_begins_to_rewrite_some_ids(lab, length, record_property):
    """No bit of a packet tells that its ID is not the one that was sent.

    So the first ones may go astray, as often as their new key is one that is in use; here 400 of 1,023
    are. Two bounces put the whole peer back into the fallback, and there it stays.
    """
    world = World(lab, containers=1, compare=False, wide=True)
    flows = cross(world.x, 20, both_ways=False)
    world.box.rules()
    fault = faults.Rewriting(5, 3 * length)
    outcome = run(world, "some IDs rewritten later", fault, flows=flows, rate=1000, before=3, after=0)
    assert not fault.problems(outcome)
    assert outcome.counters["encoded"] > 1000
    record_property("seconds until the fallback", round(fault.took or 0, 3))
    record_property("IDs rewritten until then", fault.rewritten)
    record_property("datagrams astray until then", outcome.x.misdelivered)


# Restarts


WHO = pytest.mark.parametrize(
    ("sources", "restarted"),
    [
        pytest.param([0], [1], id="receiver"),
        pytest.param([0], [0], id="sender"),
        pytest.param([0, 1], [0, 1], id="both"),
    ],
)


@length
@families
@WHO
def test_link_deleted_and_added(lab, family, sources, restarted, length):
    # Another link keeps the datapath, so there is no hold-down. Nobody is told that the old keys are dead.
    world = World(lab, lease=2, spare=True, family=family)
    fault = faults.restarts(3 * length, 0.7, restarted, rough=True)
    outcome = run(world, "link deleted and added", fault, flows=world.flows(sources=sources), after=2.5)
    lossless(outcome)
    assert outcome.counters["path_off"] == 0
    if restarted == [1]:
        assert outcome.counters["restored"] > 0
    assert outcome.late_share > 0.5


@length
@families
@WHO
def test_datapath_reloaded(lab, family, sources, restarted, length):
    # With the last link goes the datapath, and all memory of keys: hold-down is 3 s at a lease of 1 s.
    world = World(lab, lease=1, family=family)
    fault = faults.restarts(1 * length, 0.2, restarted)
    outcome = run(world, "datapath reloaded", fault, flows=world.flows(sources=sources), after=5)
    lossless(outcome)
    assert outcome.counters["path_off"] == 0
    assert outcome.counters["held"] > 0
    assert outcome.late_share > 0.1


@length
def test_one_end_reloaded_and_then_the_other(lab, length):
    # Within lease and guard of each other: neither may hold the other's ignorance against the path.
    world = World(lab, lease=1)
    outcome = run(world, "reloaded in turn", faults.restarts(2 * length, 1, [0], [1]), after=1)
    lossless(outcome)
    assert outcome.counters["path_off"] == 0


@length
@families
@pytest.mark.parametrize("hosts", [[1], [0, 1]], ids=["receiver", "both"])
def test_keys_wiped(lab, family, hosts, length):
    world = World(lab, family=family)
    # ECN-capable, and with a DSCP that means something to xmasq itself: that fifth stays in VXLAN.
    flows = world.flows(tos=(0, 46 << 2, 10 << 2 | 1, 34 << 2 | 2, 3 << 2 | 1))
    able = {
        (flow.source.address, flow.target.address, flow.tos >> 2, flow.df)
        for flow in flows
        if flow.vni == VNI and flow.tos >> 2 != 3
    }

    def encoded_again(world: World) -> bool:
        live = [one for host in world.hosts for one in host.inside(lambda: list(xmasq_link.flows()))]
        return {(one.source, one.destination, one.dscp, one.df) for one in live} == able

    def bounced(world: World) -> bool:
        """The packet after a flush bounces, unless it is one that renews the key."""
        if world.counters()["restored"]:
            return True
        world.flush(*(world.hosts[at] for at in hosts))
        return False

    fault = faults.in_turn(
        faults.flushes(8 * length, 0.3, *hosts),
        faults.until(bounced, "a packet was bounced"),
        faults.until(encoded_again, "each flow is encoded again"),
    )
    outcome = run(world, "keys wiped", fault, flows=flows)
    lossless(outcome)
    assert len(able) == (64 if family == 4 else 32)  # with and without DF
    assert outcome.counters["path_off"] == 0


@length
def test_another_machine_takes_the_vtep_address(lab, length):
    # It knows nothing of the keys that the old one gave, and gives the same ones to others.
    world = World(lab, containers=1, compare=False, wide=True)
    flows = mesh(world.x, tos=range(0, 256, 8))
    random.shuffle(flows)
    outcome = run(world, "takeover", faults.takeover(3 * length), flows=flows)
    lossless(outcome)
    assert outcome.counters["ctl_conflict"] > 0
    assert outcome.late_share > 0.5


@length
@families
def test_settings_change(lab, family, length):
    world = World(lab, lease=1, family=family)
    outcome = run(world, "settings", faults.settings(2 * length, 0.5, 0, 1), after=2)
    lossless(outcome)
    assert outcome.counters["fb_off"] > 0
    assert outcome.counters["path_off"] == 0
    assert outcome.late_share > 0.5


# More of everything


@length
def test_more_pairs_than_keys(lab, length):
    # 1,225 pairs of container addresses in either direction, and 1,023 keys.
    world = World(lab, containers=1, compare=False, wide=True)
    flows = cross(world.x, 35)
    assert len(flows) == 2 * 1225
    outcome = run(world, "1,225 pairs", lambda world: time.sleep(4 * length), flows=flows, rate=3500)
    lossless(outcome)
    assert outcome.counters["exhausted"] > 0
    for host in world.hosts:
        assert len({key.key for key in host.inside(lambda: list(xmasq_link.keys()))}) == 1023
    assert outcome.late_share > 0.5


@length
def test_keys_go_from_flow_to_flow(lab, length):
    # 625 pairs and 255 keys, which go round as fast as the rules allow: bursts, and idle gaps around lease,
    # guard and their sum. What is encoded comes late and twice, within the guard of 2 s, which has to cover
    # the way there and a bounce's way back; so only one way is slow.
    world = World(lab, lease=1, containers=1, compare=False, wide=True, options=("segment-bits", "8"))
    gaps = (0.5, 0.9, 1.0, 1.1, 1.9, 2.0, 2.1, 2.9, 3.0, 3.1, 3.9)
    flows = cross(world.x, 25, burst=5, gaps=gaps, pace=0.015)
    world.box.rules()
    fault = faults.boxed(
        7 * length,
        Rule("delay", 20, only=("encoded", "bounced"), direction="from", high=1.8),
        Rule("duplicate", 20, only=("encoded", "bounced"), direction="from", high=1.8),
        Rule("duplicate", 20, only=CONTROL, high=6),
    )
    outcome = run(world, "keys recycled", fault, flows=flows, after=2.5)
    lossless(outcome)
    assert outcome.counters["exhausted"] > 0
    assert outcome.counters["encoded"] > 500


@length
def test_two_networks_with_the_same_addresses(lab, length):
    world = World(lab, mode="bridged", lease=1, compare=False)
    other = twin(world)
    assert [c.address for c in other.containers] == [c.address for c in world.x.containers]
    flows = [f for one in (world.x, other) for f in mesh(one, gaps=(0.1, 1.1, 3.1), burst=10)]

    def decoded(world: World) -> bool:
        found = [link for host in world.hosts for link in host.inside(lambda: list(xmasq_link.links()))]
        return len(found) == 4 and all(link.stats["decoded"] > 100 for link in found)

    fault = faults.in_turn(
        faults.flushes(2 * length, 0.5, 0, 1),
        faults.restarts(length, 3, [1]),
        faults.until(decoded, "both networks are encoded on both hosts"),
    )
    outcome = run(world, "two networks", fault, flows=flows)
    lossless(outcome)
    for vni in (VNI, TWIN_VNI):
        assert outcome.result.of(vni).sent > 200  # at least what was decoded


# Containers and hosts


@length
@families
@pytest.mark.parametrize("together", [1, 3])
def test_containers_move(lab, family, together, length):
    world = World(lab, hosts=3, mode="bridged", family=family)
    fault = faults.moves(4 * length, 0.8, together=together)
    outcome = run(world, f"{together} containers move", fault)
    lossless(outcome)
    assert outcome.counters["moved"] > 0
    assert outcome.share > 0.6


@length
def test_flooding_to_several_hosts(lab, length):
    # Nothing is learned, so each fallback packet goes to three hosts, and only one of them has the target.
    world = World(
        lab, hosts=4, containers=1, mode="bridged", compare=False, pin=False, options=("nolearning",)
    )
    source, target, *_ = world.x.containers
    flows = [Flow(source, target, VNI, df=df, sizes=(100, 1000)) for df in (True, False)]
    outcome = run(world, "flooding", lambda world: time.sleep(2 * length), flows=flows, rate=300)
    lossless(outcome)
    assert outcome.x.duplicated == 0
    assert outcome.share > 0.9
    assert {flow.peer for flow in world.hosts[0].inside(lambda: list(xmasq_link.flows()))} == {
        target.host.address
    }
    for host in world.hosts[2:]:
        (link,) = host.inside(xmasq_link.links)
        assert link.stats["not_owner"] > 0
        assert link.stats["offer_tx"] == link.stats["decoded"] == 0


# Time


@length
@pytest.mark.parametrize(("low", "high"), [(3.1, 3.5), (0, 3.5)], ids=["always", "by chance"])
def test_confirm_is_late(lab, low, high, length):
    # Later than lease and guard together, 3 s.
    world = World(lab, lease=1)
    world.box.rules(Rule("delay", only=("confirm",), low=low, high=high))
    outcome = run(world, "late CONFIRM", lambda world: time.sleep(4.5 * length), after=0)
    lossless(outcome)
    if low:
        assert outcome.counters["encoded"] == 0
    else:
        assert outcome.counters["encoded"] > 0
    assert outcome.counters["confirm_rx"] > 0


@length
@families
def test_short_lease_and_idle_gaps(lab, family, length):
    world = World(lab, lease=1, family=family)
    gaps = (0.45, 0.55, 0.95, 1.0, 1.05, 1.95, 2.05, 2.95, 3.0, 3.05)
    flows = world.flows(burst=8, gaps=gaps, pace=0.02)
    outcome = run(world, "short lease", lambda world: time.sleep(7 * length), flows=flows)
    lossless(outcome)
    assert outcome.counters["fb_expired"] > 0
    assert outcome.share > 0.5
