# SPDX-License-Identifier: Apache-2.0
"""Attackers: none of them gets a packet to where it does not belong, or a flow to go elsewhere.

docs/security.md names these tests for what it says.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

import xmasq_link
from tests.lab import Container, Host, Lab, Overlay, routed_overlay
from xmasq_link._wire import ACCEPT, BOUNCE, CONFIRM, MARK, OFFER, PORT, VXLAN_FLAG_I, Control, wire_id

from ..e2e.observe import Receiver, flow, flows, stats, until
from .rogue import (
    DISCARD,
    KEYS,
    TOKEN,
    Rogue,
    Tables,
    Watch,
    again,
    contents,
    controls,
    flow_of,
    frames,
    is_control,
    is_encoded,
    nobody_sends,
    send_raw,
    source_of,
    target_of,
    vxlan,
    with_keys,
)
from .tagged import Tagged, mesh

pytestmark = pytest.mark.e2e

SECRET, WRONG = bytes(range(16)), bytes(range(1, 17))


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@dataclass
class Scene:
    """Two hosts with two containers each, and a machine of somebody else's beside them."""

    overlay: Overlay
    outsider: Host
    rogue: Rogue
    watch: Watch

    @property
    def hosts(self) -> tuple[Host, Host]:
        first, second = self.overlay.hosts[:2]
        return first, second

    @property
    def ends(self) -> tuple[Container, Container]:
        """A container on the first host and one on the second."""
        first, second = (next(iter(host.containers.values())) for host in self.hosts)
        return first, second

    def gained(self, host: Host, before: dict[str, int]) -> Counter[str]:
        """What a host's counters have gained."""
        return Counter({name: n - before[name] for name, n in stats(host).items() if n != before[name]})


def _scene(lab: Lab, *options: str, kind: str = "xmasq", insider: bool = False) -> Scene:
    """``insider``: the attacker's machine has an xmasq link itself, and a device without hooks."""
    one, two, outsider = lab.hosts(3)
    if insider:
        overlay = routed_overlay([one, two, outsider], kind, containers=2, options=options)
        outsider.plug("eth1")
    else:
        overlay = routed_overlay([one, two], kind, containers=2, options=options)
    for host in (one, two):
        assert outsider.ping(host, count=1).received == 1
    rogue = Rogue(outsider, "eth1" if insider else "eth0")
    return Scene(overlay, outsider, rogue, Watch(overlay.containers))


@pytest.fixture
def scene(lab: Lab) -> Scene:
    return _scene(lab)


@contextlib.contextmanager
def traffic(scene: Scene) -> Iterator[None]:
    """All containers talk to each other, encoded, while something happens to them.

    At the end: nothing was lost, doubled or led astray, and flows, keys and peers are what they were.
    """
    lab, overlay = scene.overlay.hosts[0].lab, scene.overlay
    inside = [container for host in scene.hosts for container in host.containers.values()]
    flows_wanted = mesh(overlay, df=(True,), sizes=(64,), containers=inside)
    wanted = {(flow.source.address, flow.target.address) for flow in flows_wanted}
    with Tagged(lab, flows_wanted, rate=400, seconds=30) as tagged:

        def encoded() -> int:
            return sum(stats(host)["encoded"] for host in scene.hosts)

        def settled() -> bool:
            return wanted <= {(f.source, f.destination) for host in scene.hosts for f in flows(host) if f.df}

        until(settled, "all flows are encoded")
        before, start = Tables.of(scene.hosts), encoded()
        yield
        assert Tables.of(scene.hosts) == before
        until(lambda: encoded() > start + 300, "enough is sent")
        result = tagged.stop()
    tally = result.of(overlay.vni)
    assert (tally.misdelivered, tally.lost, tally.duplicated, result.corrupt) == (0, 0, 0, 0)
    assert not tally.at_host
    assert tally.sent > 300


def test_a_host_that_is_no_vtep_knows_everything_but_the_nonces(scene):
    """Every key, in encoded, bounced and control packets, from its own address."""
    one, two = scene.hosts
    rogue, rng = scene.rogue, random.Random(1)
    with traffic(scene):
        there, back = flow_of(scene.overlay, *scene.ends), flow_of(scene.overlay, *scene.ends[::-1])
        before = {host: stats(host) for host in scene.hosts}
        for content in contents():
            rogue.send(with_keys(rogue.frame(two, content)))
            rogue.send(with_keys(rogue.frame(one, content, dscp=BOUNCE)))
        bounces = [packet for packet in rogue.received() if packet[1] >> 2 == BOUNCE]
        rogue.send(rogue.controls(one, controls(OFFER, there, rng)))
        rogue.send(rogue.controls(one, controls(CONFIRM, there, rng)))
        rogue.send(rogue.controls(two, controls(ACCEPT, there, rng)))
        rogue.send(rogue.controls(two, controls(OFFER, back, rng)))
        until(lambda: scene.gained(two, before[two])["ctl_unsolicited"] == 1023, "all came")
        at_sender, at_receiver = scene.gained(one, before[one]), scene.gained(two, before[two])
        assert len(bounces) == at_receiver["bounce_tx"] == 2 * 1023
        assert (at_sender["bounce_rx"], at_sender["stray"]) == (2 * 1023, 2 * 1023)
        assert (at_sender["ctl_unsolicited"], at_sender["ctl_nonce"]) == (1023, 1023)
        assert at_receiver["ctl_nonce"] == 1023
        assert at_sender["restored"] == at_sender["path_off"] == 0
        assert at_sender["ctl_conflict"] == at_receiver["ctl_conflict"] == 0
    assert scene.watch.got() == []


def test_forged_control_packets_while_keys_are_negotiated(lab):
    """A lease of a second: renewals go on all the time while OFFERs and CONFIRMs rain."""
    scene = _scene(lab, "lease", "1")
    one, two = scene.hosts
    rogue, rng = scene.rogue, random.Random(2)
    with traffic(scene):
        there = flow_of(scene.overlay, *scene.ends)
        rain = [*rogue.controls(two, controls(ACCEPT, there, rng))]
        for kind in (OFFER, CONFIRM):
            rain += rogue.controls(one, controls(kind, there, rng))
        rng.shuffle(rain)
        before = {host: stats(host) for host in scene.hosts}
        end, rounds = time.monotonic() + 3, 0
        while time.monotonic() < end:
            rogue.send(rain)
            rounds += 1
        at_sender, at_receiver = scene.gained(one, before[one]), scene.gained(two, before[two])
        assert (at_sender["ctl_unsolicited"], at_sender["ctl_nonce"]) == (1023 * rounds, 1023 * rounds)
        assert at_receiver["ctl_nonce"] == 1023 * rounds
        # Four flows, each renewed about twice a second, beside what was forged.
        assert at_sender["confirm_rx"] - 1023 * rounds > 8
    assert scene.watch.got() == []


def test_a_host_that_takes_a_vtep_address(scene):
    """It can do what it can do to VXLAN: put packets into the flows of the host whose address it takes.

    It cannot get at another flow, nor at what the hosts have agreed on without the nonces.
    """
    one, two = scene.hosts
    rogue, rng = scene.rogue, random.Random(3)
    with traffic(scene):
        there = flow_of(scene.overlay, *scene.ends)
        before = {host: stats(host) for host in scene.hosts}
        granted = [key.key for key in two.inside(lambda: list(xmasq_link.keys())) if key.state == "granted"]
        rogue.send(with_keys(rogue.frame(two, contents()[0], source=one.address), granted))
        rogue.send(rogue.controls(two, controls(ACCEPT, there, rng), source=one.address))
        rogue.send(rogue.controls(one, controls(CONFIRM, there, rng), source=two.address))
        until(lambda: scene.gained(one, before[one])["ctl_nonce"] == 1023, "all came")
        assert scene.gained(two, before[two])["ctl_nonce"] == 1023
    got = scene.watch.got()
    assert len(got) == len(granted) == 4
    by_address = {container.address: container for container in scene.overlay.containers}
    for where, packet in got:
        assert where is by_address[target_of(packet)]
        assert (by_address[source_of(packet)].host, where.host) == (one, two)


def test_a_host_that_takes_a_vtep_address_answers_in_its_stead(scene):
    """The true ACCEPTs get lost, so all OFFERs are open; what is missing are the nonces only."""
    one, two = scene.hosts
    a, b = scene.ends
    rogue, rng = scene.rogue, random.Random(6)
    assert a.ping(b, count=1).received == 1
    lost = one.lab.fabric.loss(100, only=f"udp dport {PORT} @th,64,8 0", host=one)
    with Receiver(b) as receiver, a.socket() as client:
        for number in range(20):
            client.sendto(b"to b", receiver.address)
            time.sleep(0.02)
            keys = two.inside(lambda: [key for key in list(xmasq_link.keys()) if key.df])
            if number < 2:
                continue
            many = [key.key for key in keys]
            assert many
            rogue.send(rogue.controls(two, controls(ACCEPT, keys[0], rng, many), source=one.address))
            rogue.send(rogue.controls(one, controls(CONFIRM, keys[0], rng, many), source=two.address))
            assert {key.state for key in keys} <= {"offered", "reserved"}
            assert flow(a, b) is None
        assert all(receiver.receive(1) for _ in range(20))
    assert lost.packets > 2
    for host in scene.hosts:
        assert stats(host)["ctl_nonce"] >= 18


def test_bounces_from_a_host_that_takes_a_vtep_address_cost_speed_only(scene):
    """Encoding may be given up, for a key or for the peer; each packet still gets where it belongs."""
    one, two = scene.hosts
    with Tagged(one.lab, mesh(scene.overlay, df=(True,), sizes=(64,)), rate=400, seconds=30) as tagged:
        until(lambda: len(flows(one)) == 4, "all flows are encoded")
        before = stats(one)
        frame = scene.rogue.frame(one, contents()[0], source=two.address, dscp=BOUNCE)
        scene.rogue.send(with_keys(frame))
        until(lambda: scene.gained(one, before)["bounce_rx"] == 1023, "all came")
        gained = scene.gained(one, before)
        # As if the container had sent it, and to where its packets go.
        assert (gained["restored"], gained["path_off"]) == (4, 1)
        time.sleep(0.5)
        result = tagged.stop().of(scene.overlay.vni)
    assert (result.misdelivered, result.lost) == (0, 0)
    by_address = {container.address: container for container in scene.overlay.containers}
    for where, packet in scene.watch.got():
        assert where is by_address[target_of(packet)]
        assert (by_address[source_of(packet)].host, where.host) == (one, two)


@pytest.mark.parametrize("kind", ["xmasq", "vxlan"])
def test_what_vxlan_lets_in_comes_in(lab, kind):
    """A VXLAN packet with any inner header, from the attacker's address and from a VTEP's.

    Both kinds of link take it: this is what a firewall for the tunnel's port is for.
    """
    scene = _scene(lab, kind=kind)
    one, two = scene.hosts
    a, b = scene.ends
    assert a.ping(b).received == 3
    inner = _inner(scene, a.address)
    for source in (scene.outsider.address, one.address):
        scene.rogue.send([scene.rogue.vxlan(two, inner, scene.overlay.vni, source=source, dscp=0)])
        (got,) = until(scene.watch.got, f"a packet from {source} came in")
        assert (got[0], source_of(got[1])) == (b, a.address)


def _inner(scene: Scene, source: str) -> Packet:
    """What a container of the first host would send to one of the second."""
    return (
        Ether(src=scene.overlay.lladdr(scene.hosts[0]), dst=scene.overlay.lladdr(scene.hosts[1]))
        / IP(src=source, dst=scene.ends[1].address, flags="DF")
        / UDP(sport=7000, dport=DISCARD, chksum=0)
        / Raw(TOKEN)
    )


def _offers(scene: Scene) -> list[Control]:
    """The OFFERs that answer an announced packet for a container, which the rogue makes up."""
    inner = _inner(scene, scene.overlay.container_address(scene.hosts[0], 9))
    scene.rogue.received(0.05)
    scene.rogue.send([scene.rogue.vxlan(scene.hosts[1], inner, scene.overlay.vni)])
    marked = [packet[28:] for packet in scene.rogue.received() if packet[1] >> 2 == MARK]
    return [Control.unpack(payload) for payload in marked if not payload[0] & VXLAN_FLAG_I]


def _keep_out(host: Host, friend: Host) -> None:
    """The host's firewall takes the tunnel's packets from one other host only."""
    chain = "chain ip f i { type filter hook input priority 0; }"
    rule = f"rule ip f i udp dport {PORT} ip saddr != {friend.address} drop"
    host.run(["nft", "-f", "-"], input=f"add table ip f\nadd {chain}\nadd {rule}\n")


def test_a_host_that_the_firewall_keeps_out_gets_no_key(scene):
    """Our hooks see packets before the firewall does, and yet a host that it keeps out is out."""
    one, two = scene.hosts
    _keep_out(two, one)
    with traffic(scene):
        before = stats(two)
        assert _offers(scene) == []
        assert scene.gained(two, before)["untold"] == 1
    assert scene.watch.got() == []


def test_a_process_on_the_host_cannot_let_a_confederate_in(scene):
    """One without privileges sends what looks like the tunnel's own packets from the VTEP address."""
    one, two = scene.hosts
    _keep_out(two, one)
    with traffic(scene):
        inner = _inner(scene, scene.ends[1].address)
        nobody_sends(two, scene.outsider, vxlan(inner, scene.overlay.vni), seconds=0.5)
        until(lambda: scene.rogue.received(0.05), "the process sends")
        assert _offers(scene) == []
    assert scene.watch.got() == []


def test_a_process_on_the_host_cannot_redirect_a_flow(lab):
    """It repeats a container's headers in a packet of its own, to a confederate who offers keys."""
    one, two, outsider = lab.hosts(3)
    overlay = routed_overlay([one, two], ["xmasq", "vxlan"])
    assert outsider.ping(one, count=1).received == 1
    scene = Scene(overlay, outsider, Rogue(outsider), Watch(overlay.containers))
    a, b = overlay.containers
    _keep_out(outsider, outsider)  # or it would say that nothing listens there
    control = Control(
        OFFER, overlay.vni, overlay.lladdr(one), overlay.lladdr(two), a.address, b.address, 5, 10_000
    )
    (offer,) = scene.rogue.controls(one, [control])
    nobody_sends(one, outsider, vxlan(_inner(scene, a.address), overlay.vni), seconds=4)
    until(lambda: scene.rogue.received(0.05), "the processes send")
    before = stats(one)
    with Receiver(b) as receiver, a.socket() as client:
        for _ in range(200):
            client.sendto(b"to b only", receiver.address)
            scene.rogue.send([offer])
            time.sleep(0.005)
        assert all(receiver.receive(1) for _ in range(200))
    gained = scene.gained(one, before)
    assert (gained["accept_tx"], gained["ctl_unsolicited"]) == (0, 200)
    assert flows(one) == []


def test_a_container_that_sets_every_dscp_and_key_through_snat(scene):
    """No MARK and no BOUNCE of a container's leaves its host, and nothing else of its packets changes."""
    one, two = scene.hosts
    a = scene.ends[0]
    chain = "chain ip nat post { type nat hook postrouting priority 100; }"
    rule = f"rule ip nat post ip saddr {scene.overlay.subnet(one)} oifname eth0 masquerade"
    one.run(["nft", "-f", "-"], input=f"add table ip nat\nadd {chain}\nadd {rule}\n")
    assert a.ping(two, count=1).received == 1
    tries = [(dscp, wire_id(key) + 1) for dscp in range(64) for key in range(1, 1024, 128)]
    tries += [(dscp, wire_id(key)) for dscp in (MARK, BOUNCE) for key in range(1, 1024, 2)]
    packets = [
        TCP(sport=7000, dport=DISCARD, flags="S") / Raw(TOKEN),
        # As if it were the tunnel: nothing of its own, and a control packet.
        UDP(dport=PORT, chksum=0) / Raw(bytes([VXLAN_FLAG_I]) + bytes(7) + TOKEN),
        UDP(dport=PORT, chksum=0) / Raw(bytes(8) + TOKEN),
    ]
    with traffic(scene):
        before = {host: stats(host) for host in scene.hosts}
        with one.lab.fabric.capture(one, f"src host {one.address}", snaplen=128) as capture:
            for content in packets:
                send_raw(a, [(a.address, two.address, *each) for each in tries], content)
        left = Counter((frame[15] >> 2, frame[18:20]) for frame in frames(capture) if TOKEN in frame)
        clean = {each: 0 if each[0] in (MARK, BOUNCE) else each[0] for each in tries}
        wanted = Counter((clean[each], each[1].to_bytes(2, "big")) for each in tries)
        assert left == Counter({each: n * len(packets) for each, n in wanted.items()})
        ours = sum(each[0] in (MARK, BOUNCE) for each in tries)
        assert scene.gained(one, before[one])["sanitised"] == ours * len(packets)
        gained = scene.gained(two, before[two])
        assert gained["bounce_tx"] == gained["ctl_bad"] == gained["ctl_path"] == gained["untold"] == 0
    assert scene.watch.got() == []


def test_a_container_that_takes_other_addresses(scene):
    """Raw sockets, any source: what leaves its host bears no MARK, what goes through the link stays apart."""
    one, two = scene.hosts
    a, b = scene.ends
    sources = [a.address, one.address, two.address, scene.outsider.address, b.address]
    tries = [(dscp, wire_id(key)) for dscp in (MARK, BOUNCE) for key in range(1, 1024, 8)]
    content = contents()[0]
    with traffic(scene):
        before = {host: stats(host) for host in scene.hosts}
        with one.lab.fabric.capture(one, "inbound", snaplen=128) as capture:
            for source in sources:
                send_raw(a, [(source, two.address, *each) for each in tries], content)
        left = [frame for frame in frames(capture) if TOKEN in frame]
        assert {frame[15] >> 2 for frame in left} == {0}
        # All but the host's own address, which no forwarded packet may have.
        assert {source_of(frame[14:]) for frame in left} == {*sources} - {one.address}
        assert scene.gained(one, before[one])["sanitised"] == len(left)
        gained = scene.gained(two, before[two])
        assert gained["bounce_tx"] == gained["ctl_bad"] == 0
    assert scene.watch.got() == []
    # Through the link DSCP and source are the container's own affair, as with VXLAN.
    sent = [(source, b.address, dscp, 1) for source in (a.address, "203.0.113.5") for dscp in range(64)] * 3
    send_raw(a, sent, content)
    got = Counter((where, source_of(packet), packet[1] >> 2) for where, packet in scene.watch.got())
    assert got == Counter((b, source, dscp) for source, _, dscp, _ in sent)


def test_a_vtep_that_offers_keys_for_flows_of_others(lab):
    """A third VTEP, of the same link, with keys of its own, speaks for flows between the other two."""
    scene = _scene(lab, insider=True)
    one, two = scene.hosts
    b = scene.ends[1]
    c = next(iter(scene.outsider.containers.values()))
    rogue, rng = scene.rogue, random.Random(4)
    with Receiver(b) as receiver, c.socket() as client:

        def granted() -> bool:
            client.sendto(b"?", receiver.address)
            return flow(c, b) is not None

        until(granted, "the third host has a key of its own")
    with traffic(scene):
        own = flow_of(scene.overlay, c, b)
        there, back = flow_of(scene.overlay, *scene.ends), flow_of(scene.overlay, *scene.ends[::-1])
        before = {host: stats(host) for host in scene.hosts}
        rogue.send(rogue.controls(one, controls(OFFER, there, rng)))
        rogue.send(rogue.controls(two, controls(OFFER, back, rng)))
        rogue.send(rogue.controls(one, controls(CONFIRM, there, rng)))
        rogue.send(rogue.controls(two, controls(ACCEPT, there, rng)))
        rogue.send(with_keys(rogue.frame(two, contents()[0])))
        until(lambda: scene.gained(two, before[two])["bounce_tx"] == 1022, "all came")
        at_sender, at_receiver = scene.gained(one, before[one]), scene.gained(two, before[two])
        assert (at_sender["ctl_unsolicited"], at_sender["ctl_nonce"]) == (1023, 1023)
        assert (at_receiver["ctl_unsolicited"], at_receiver["ctl_nonce"]) == (1023, 1023)
    # The one key that is its own means its own flow, whatever the others' keys of that number mean.
    ((where, packet),) = scene.watch.got()
    assert (where, source_of(packet)) == (b, c.address)
    assert own.key in KEYS


def test_replayed_packets(lab):
    """All control packets of a negotiation again, at once and when the leases are over."""
    scene = _scene(lab, "lease", "1")
    one = scene.hosts[0]
    rogue = scene.rogue
    with lab.fabric.capture(one) as capture:
        with traffic(scene):
            time.sleep(1.2)
        said = frames(capture)
    control = [again(frame, rogue.mac) for frame in said if is_control(frame)]
    encoded = [again(frame, rogue.mac) for frame in said if is_encoded(frame)]
    assert len(control) > 8 * 3
    assert len(encoded) > 200
    with traffic(scene):
        before = {host: stats(host) for host in scene.hosts}
        rogue.send(control)
        # The same from the machine's own address.
        rogue.send(again(frame, rogue.mac, scene.outsider.address) for frame in control)
        gained = sum((scene.gained(host, before[host]) for host in scene.hosts), Counter())
        assert gained["ctl_nonce"] + gained["ctl_unsolicited"] > len(control)
    until(lambda: not Tables.of(scene.hosts).keys, "all keys are free again", timeout=8)
    scene.watch.got(b"")
    before = {host: stats(host) for host in scene.hosts}
    rogue.send(control)
    rogue.send(encoded)
    gained = sum((scene.gained(host, before[host]) for host in scene.hosts), Counter())
    assert gained["ctl_nonce"] + gained["ctl_unsolicited"] == len(control)
    assert gained["bounce_tx"] == len(encoded)
    assert gained["decoded"] == 0
    after = Tables.of(scene.hosts)
    assert (after.flows, after.keys) == (frozenset(), frozenset())
    assert scene.watch.got(b"") == []


@pytest.mark.parametrize("secret", [None, WRONG], ids=["none", "another"])
def test_a_host_without_the_secret_gets_the_fallback_only(lab, secret):
    scene = _scene(lab, insider=True)
    one, two = scene.hosts
    for host, its_own in ((one, SECRET), (two, SECRET), (scene.outsider, secret)):
        if its_own is not None:
            host.inside(lambda its_own=its_own: xmasq_link.set_link("xm0", secret=its_own))
    with Tagged(lab, mesh(scene.overlay, df=(True,), sizes=(64,)), rate=600, seconds=2) as tagged:
        result = tagged.wait().of(scene.overlay.vni)
        assert (result.misdelivered, result.lost) == (0, 0)
        assert {each.peer for each in flows(one)} == {two.address}
        assert len(flows(one)) == 4
        assert flows(scene.outsider) == []
        for host in (one, two, scene.outsider):
            assert stats(host)["ctl_auth"] > 0


def test_control_packets_without_the_right_authenticator(lab):
    """Forged ones, also in the name of the VTEP; and replayed, as they were and from another address."""
    scene = _scene(lab, "lease", "1")
    one, two = scene.hosts
    rogue, rng = scene.rogue, random.Random(5)
    for host in scene.hosts:
        host.inside(lambda: xmasq_link.set_link("xm0", secret=SECRET))
    with lab.fabric.capture(one) as capture, traffic(scene):
        time.sleep(1)
    said = [frame for frame in frames(capture) if is_control(frame)]
    assert len(said) > 8 * 3
    with traffic(scene):
        there = flow_of(scene.overlay, *scene.ends)
        before = {host: stats(host) for host in scene.hosts}
        for secret in (None, WRONG):
            for kind, target, source in ((OFFER, one, two), (CONFIRM, one, two), (ACCEPT, two, one)):
                many = controls(kind, there, rng)
                rogue.send(rogue.controls(target, many, source=source.address, secret=secret))
        rogue.send(again(frame, rogue.mac, scene.outsider.address) for frame in said)
        gained = sum((scene.gained(host, before[host]) for host in scene.hosts), Counter())
        assert gained["ctl_auth"] == 2 * 3 * 1023 + len(said)
        before = {host: stats(host) for host in scene.hosts}
        rogue.send(again(frame, rogue.mac) for frame in said)
        gained = sum((scene.gained(host, before[host]) for host in scene.hosts), Counter())
        assert gained["ctl_auth"] == 0
        assert gained["ctl_nonce"] + gained["ctl_unsolicited"] > len(said) // 2
    assert scene.watch.got() == []


def test_a_host_that_is_no_vtep_uses_our_dscp_for_its_own_traffic(scene):
    """To a VTEP address it is taken for ours and comes back; to another address of the host it is not."""
    two = scene.hosts[1]
    two.ip("addr add 192.0.2.102/24 dev eth0")
    rogue = scene.rogue

    def answers(content: Packet, **kwargs: Any) -> list[tuple[int, int]]:
        """DSCP and protocol of what comes back."""
        rogue.received(0.05)
        rogue.send([rogue.frame(two, content, **kwargs)])
        return [(packet[1] >> 2, packet[9]) for packet in rogue.received()]

    echo, syn = ICMP(id=7) / Raw(TOKEN), TCP(dport=DISCARD, flags="S")
    assert answers(echo, ident=wire_id(5)) == [(BOUNCE, 1)]
    assert answers(syn, ident=wire_id(5)) == [(BOUNCE, 6)]
    # No key, or not one packet: the host's own stack answers, without MARK.
    assert answers(echo, ident=5) == [(0, 1)]
    assert answers(echo, ident=wire_id(5), df=False) == [(0, 1)]
    before = stats(two)
    assert answers(echo, ident=wire_id(5), address="192.0.2.102") == [(0, 1)]
    assert answers(syn, ident=wire_id(5), address="192.0.2.102") == [(0, 6)]
    # As answers do, the echo's took over its DSCP, which is cleared on the way out.
    assert scene.gained(two, before)["sanitised"] >= 1
    assert scene.gained(two, before)["bounce_tx"] == 0


def test_a_device_without_hooks_is_a_way_around(scene):
    """What docs/security.md warns of: MARK is cleared on the devices that links name, and only there."""
    one, two = scene.hosts
    a = scene.ends[0]
    one.plug("eth1")
    one.ip(f"route add {two.address}/32 dev eth1 src {one.address}")
    chain = "chain ip nat post { type nat hook postrouting priority 100; }"
    rule = f"rule ip nat post oifname eth1 snat to {one.address}"
    one.run(["nft", "-f", "-"], input=f"add table ip nat\nadd {chain}\nadd {rule}\n")
    before = stats(two)
    content = TCP(sport=7000, dport=DISCARD, flags="S") / Raw(TOKEN)
    send_raw(a, [(a.address, two.address, MARK, wire_id(key)) for key in range(1, 11)], content)
    until(lambda: scene.gained(two, before)["bounce_tx"] == 10, "MARK arrived")


def test_an_ipsec_policy_for_the_tunnel_ends_encoding(lab):
    """A policy that names the tunnel's port does not match encoded packets. But what leaves under it is
    no VXLAN any more where our hook looks, so nothing is solicited and no lease renewed.
    """
    scene = _scene(lab, "lease", "1")
    one, two = scene.hosts
    a, b = scene.ends

    def seen() -> set[bool]:
        """Sends for a while; whether what left was encoded."""
        with lab.fabric.capture(one, f"src host {one.address}", snaplen=256) as capture:
            for _ in range(50):
                client.sendto(TOKEN, receiver.address)
                time.sleep(0.01)
        return {is_encoded(frame) for frame in frames(capture) if TOKEN in frame}

    with Receiver(b) as receiver, a.socket() as client:

        def granted() -> bool:
            client.sendto(TOKEN, receiver.address)
            return flow(a, b) is not None

        until(granted, "it is encoded")
        assert True in seen()
        which = f"src {one.address} dst {two.address} proto udp dport {PORT}"
        one.run(f"ip xfrm policy add dir out {which} tmpl proto esp mode transport")
        time.sleep(1)  # half a lease, and no more than one renewal a second
        # There is no security association, so what the policy matches does not leave at all.
        assert seen() == set()
        assert flow(a, b) is None
