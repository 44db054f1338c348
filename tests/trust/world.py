# SPDX-License-Identifier: Apache-2.0
"""Hosts that carry the same container network twice, over xmasq and over plain vxlan.

Both networks share the underlay, so that one fault strikes both, and what vxlan loses at the same
time is the measure for what xmasq may lose.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import xmasq_link
from tests.lab import Container, Family, Host, Lab, Overlay, bridged_overlay, routed_overlay
from tests.lab.nodes import GATEWAY

from .middlebox import Middlebox
from .tagged import Flow, Result, Tagged, Tally, mesh

#: A span of time.monotonic() in which a fault takes the network away, so that vxlan loses, too.
Window = tuple[float, float]

VNI, TWIN_VNI, PLAIN_VNI, SPARE_VNI = 42, 77, 43, 99
#: The plain vxlan has a port of its own: a UDP port belongs to one tunnel on each VTEP address.
PLAIN_PORT = 4790
#: After a network is back, it may still lose what was on the way when it came: seconds.
SETTLE = 0.05
#: A run goes on until so many datagrams were sent over xmasq: fewer would say too little.
SENT_MIN = 500


class World:
    """``hosts`` with ``containers`` each, in an xmasq network and, with ``compare``, a vxlan one.

    ``mode`` is the xmasq network's, the other one is bridged. ``spare`` adds a second xmasq link to each
    host, so that the datapath stays when the first is deleted. ``options`` are words of ``link add``;
    ``lease`` is in seconds. Neighbours are permanent with ``pin``: a lost ARP packet would lose many
    datagrams at once, and no statistics could compare that. ``family``: of the VTEPs' and the containers'
    addresses.
    """

    def __init__(
        self,
        lab: Lab,
        *,
        hosts: int = 2,
        containers: int = 2,
        mode: Literal["routed", "bridged"] = "routed",
        lease: float = 10,
        options: Sequence[str] = (),
        compare: bool = True,
        spare: bool = False,
        pin: bool = True,
        wide: bool = False,
        family: Family = 4,
    ) -> None:
        self.lab = lab
        self.hosts = lab.hosts(hosts, family=family)
        self.lease = lease
        self.words = {"lease_ms": round(lease * 1000)}
        make = routed_overlay if mode == "routed" else bridged_overlay
        words = ["lease", f"{lease:g}s", *options]
        self.x = make(
            self.hosts, "xmasq", vni=VNI, containers=containers, wide=wide, link="xm0", options=words
        )
        self.v = None
        if compare:
            self.v = bridged_overlay(
                self.hosts,
                "vxlan",
                vni=PLAIN_VNI,
                containers=containers,
                wide=wide,
                link="vx0",
                bridge="br1",
                dstport=PLAIN_PORT,
            )
        self._past: Counter[str] = Counter()
        self._homes = {c: c.host for overlay in self.overlays for c in overlay.containers}
        for one in self.hosts:
            for other in self.hosts[: self.hosts.index(one)]:
                one.ping(other, count=1)  # the first datagrams shall not wait for ARP
        if pin:
            for overlay in self.overlays:
                if overlay.mode == "bridged":
                    _pin(overlay)
        if spare:
            for host in self.hosts:
                host.inside(
                    lambda host=host: xmasq_link.create_link(  # type: ignore[misc]
                        "xs0", vni=SPARE_VNI, local=host.address, dev="eth0", **self.words
                    )
                )

    @property
    def overlays(self) -> list[Overlay]:
        """The xmasq network, and the vxlan one if there is one."""
        return [self.x, *([self.v] if self.v else [])]

    @property
    def guard(self) -> float:
        """How long after a lease's end packets may still be under way, in seconds."""
        return max(2.0, self.lease / 2)

    def flows(self, *, sources: Sequence[int] | None = None, **kwargs: Any) -> list[Flow]:
        """Flows between all containers on different hosts of both networks, see :func:`mesh`.

        ``sources``: only those of containers on these hosts.
        """
        hosts = [self.hosts[at] for at in sources] if sources is not None else self.hosts
        flows = [flow for overlay in self.overlays for flow in mesh(overlay, **kwargs)]
        return [flow for flow in flows if flow.source.host in hosts]

    # What is seen

    def counters(self) -> Counter[str]:
        """The xmasq links' counters, summed over hosts, and over deleted links, too."""
        total = Counter(self._past)
        for host in self.hosts:
            total.update(counters(host, self.x.link))
        return total

    def verdicts(self, host: Host) -> dict[str, str]:
        """What a host thinks of the paths to its peers: "ok" or "path"."""
        return {peer.peer: peer.verdict for peer in host.inside(xmasq_link.peers)}

    def wait(self, true: Callable[[], bool], timeout: float, poll: float = 0.02) -> float | None:
        """Seconds until something is true, or None if it is not within ``timeout`` seconds."""
        begin = time.monotonic()
        while not true():
            if time.monotonic() - begin > timeout:
                return None
            time.sleep(poll)
        return time.monotonic() - begin

    # What is done to it

    @functools.cached_property
    def box(self) -> Middlebox:
        """A middlebox before the first host. Asked for the first time, it interrupts for a moment."""
        for host in self.hosts:
            host.offloads(tx=False, gso=False, tso=False, gro=False)
        return Middlebox(self.hosts[0])

    def restart(self, *hosts: Host, down: float = 0.2, rough: bool = False) -> Window:
        """Deletes both networks' links of these hosts, and makes them again ``down`` seconds later.

        The datapath goes along unless there is a spare link. All hosts' links are away at a time.
        ``rough``: without xmasq's knowledge, so that no peer is told.
        """
        begin = time.monotonic()
        for host in hosts:
            self._past.update(counters(host, self.x.link))
        for host in hosts:
            if rough:
                host.ip(f"link del {self.x.link}")
            else:
                host.inside(lambda: xmasq_link.delete_link(self.x.link))
            if self.v:
                host.ip(f"link del {self.v.link}")
        time.sleep(down)
        for host in hosts:
            self._make(host)
            # The host's own counters, and only they, live on with the datapath.
            self._past.subtract(counters(host, self.x.link))
        return begin, time.monotonic() + SETTLE

    def _make(self, host: Host) -> None:
        x = self.x
        host.inside(
            lambda: xmasq_link.create_link(
                x.link,
                vni=x.vni,
                local=host.address,
                dev="eth0",
                port=x.dstport,
                address=x.lladdr(host),
                learning=x.mode == "bridged",
                **self.words,
            )
        )
        _join(x, host)
        if self.v:
            host.ip(
                f"link add mtu {self.v.mtu} {self.v.link} address {self.v.lladdr(host)} type vxlan "
                f"id {self.v.vni} local {host.address} dstport {self.v.dstport}"
            )
            _join(self.v, host)

    def flush(self, *hosts: Host, **what: str) -> int:
        """Ends flows and keys on these hosts before their time; returns how many."""
        return sum(host.inside(lambda: xmasq_link.flush(**what)) for host in hosts)

    def set(self, host: Host, **change: Any) -> None:
        """Changes a host's xmasq link, see :func:`xmasq_link.set_link`."""
        host.inside(lambda: xmasq_link.set_link(self.x.link, **change))

    def replace(self, at: int) -> Window:
        """A new machine takes the place, the address and the containers of a host, which goes silent.

        For a routed network without a vxlan one.
        """
        old, new = self.hosts[at], self.lab.host()
        begin = time.monotonic()
        self._past.update(counters(old, self.x.link))
        old.ip("link set eth0 down")
        new.ip("addr flush dev eth0", f"addr add {old.address}/24 dev eth0")
        new.address, new.number = old.address, old.number
        for container in self.x.containers:
            if container.host is old:
                veth, container.host = container.veth, new
                old.ip(f"link set {veth} netns {new.name}")
                new.ip(
                    f"addr add {GATEWAY}/32 dev {veth}",
                    f"link set {veth} up",
                    f"route add {container.address}/32 dev {veth} src {new.address}",
                )
                _wait_for_carriers(container)
        self.hosts[at] = self.x.hosts[at] = new
        self._make(new)
        for other in self.hosts:
            if other is not new:
                other.ip("neigh flush dev eth0")
                other.ping(new, count=1)
        return begin, time.monotonic() + SETTLE

    def bring_home(self) -> None:
        """Containers that have moved go back to the hosts on which they were made."""
        for overlay in self.overlays:
            for container in overlay.containers:
                if container.host is not self._homes[container]:
                    self.move(container, self._homes[container], overlay.bridge)

    def move(self, container: Container, host: Host, bridge: str) -> Window:
        """A bridged container goes to another host as it is, and announces itself there."""
        begin = time.monotonic()
        veth = container.veth
        container.host.ip(f"link set {veth} netns {host.name}")
        host.ip(f"link set {veth} master {bridge}", f"link set {veth} up")
        container.host.containers.pop(container.short)
        host.containers[container.short] = container
        container.host = host
        _wait_for_carriers(container)
        container.announce()
        return begin, time.monotonic() + SETTLE


def twin(world: World) -> Overlay:
    """A second xmasq network on the same hosts, with the same addresses and MACs; both are bridged."""
    overlay = bridged_overlay(
        world.hosts,
        "xmasq",
        vni=TWIN_VNI,
        containers=len(world.x.containers) // len(world.hosts),
        link="xn0",
        bridge="br2",
        options=("lease", f"{world.lease:g}s"),
    )
    _pin(overlay)
    return overlay


def counters(host: Host, link: str) -> Counter[str]:
    """The counters of a host's xmasq link; those of the host itself are among them."""
    (one,) = host.inside(lambda: xmasq_link.links(link))
    return Counter(one.stats)


def _join(overlay: Overlay, host: Host) -> None:
    """Puts a new link of a host in its place, as the laboratory did with the first one."""
    link = overlay.link
    others = [other for other in overlay.hosts if other is not host]
    if overlay.mode == "bridged":
        host.bridge(
            *(
                f"fdb append 00:00:00:00:00:00 dev {link} dst {other.address} self permanent"
                for other in others
            )
        )
        host.ip(f"link set {link} master {overlay.bridge}", f"link set {link} up")
        return
    host.bridge(
        *(
            f"fdb append {overlay.lladdr(other)} dev {link} dst {other.address} self permanent"
            for other in others
        )
    )
    length = "32" if overlay.inner == 4 else "128 nodad"
    lines = [f"addr add {overlay.link_address(host)}/{length} dev {link}", f"link set {link} up"]
    for other in others:
        via = overlay.link_address(other)
        lines.append(f"neigh add {via} lladdr {overlay.lladdr(other)} dev {link} nud permanent")
        lines.append(f"route add {overlay.subnet(other)} via {via} dev {link} onlink")
    host.ip(*lines)


def _wait_for_carriers(container: Container) -> None:
    """A container whose veth went to another host has a network again when both ends know."""
    container.wait_for_carrier("eth0")
    container.host.wait_for_carrier(container.veth)


def _pin(overlay: Overlay) -> None:
    macs = {c: c.ip_json("link show eth0")[0]["address"] for c in overlay.containers}
    for container in overlay.containers:
        container.ip(
            *(
                f"neigh replace {other.address} lladdr {mac} dev eth0 nud permanent"
                for other, mac in macs.items()
                if other is not container
            )
        )


@dataclass
class Outcome:
    """A run of tagged traffic under a fault: the xmasq network's tally and the vxlan one's.

    ``counters`` are the increments of the xmasq links' counters. ``late`` are those since the fault ended.
    """

    name: str
    seconds: float
    result: Result
    counters: Counter[str]
    late: Counter[str] = field(default_factory=Counter)
    windows: list[Window] = field(default_factory=list)

    @functools.cached_property
    def x(self) -> Tally:
        """Over xmasq, in all its networks."""
        return self.result.but(PLAIN_VNI)

    @property
    def v(self) -> Tally:
        """Over vxlan."""
        return self.result.of(PLAIN_VNI)

    @property
    def share(self) -> float:
        """Which part of the packets was encoded."""
        return share(self.counters)

    @property
    def late_share(self) -> float:
        """The same since the fault ended."""
        return share(self.late)

    def lost(self) -> tuple[int, int]:
        """How many were lost over xmasq and over vxlan while the network was there."""
        return self.x.lost_outside(self.windows), self.v.lost_outside(self.windows)

    def problems(self, *, by_chance: bool = False, clustering: float = 1) -> list[str]:
        """What must not be: datagrams astray, changed, or lost where vxlan does not lose them.

        ``by_chance``: the fault takes packets by chance, so the two losses differ by chance. ``clustering``:
        by how much the variance of how many it takes is above that of a fault that takes each by itself.
        """
        found = []
        if self.result.misdelivered:
            astray = [text for tally in self.result.tallies.values() for _, text in tally.astray[:3]]
            found.append(f"{self.result.misdelivered} misdelivered: {'; '.join(astray)}")
        if self.result.corrupt:
            found.append(f"{self.result.corrupt} corrupt")
        if at_host := sum(_outside(tally.at_host, self.windows) for tally in self.result.tallies.values()):
            found.append(f"{at_host} reached a host's own stack")
        x, v = self.lost()
        allowed = v + (chance(x, self.x.sent, v, self.v.sent, clustering) if by_chance else 0)
        if x > allowed:
            found.append(f"{x} of {self.x.sent} lost, vxlan {v} of {self.v.sent}; {self._when()}")
        return found

    def _when(self) -> str:
        """When those lost over xmasq were sent that had a network; for whoever looks for the cause."""
        times = [at for at in self.x.lost_at if _outside([at], self.windows)]
        if not self.windows:
            return f"within {times[-1] - times[0]:.3f} s" if times else ""
        marks = [
            (f"{name} {number}", at)
            for number, span in enumerate(self.windows, 1)
            for name, at in zip(("begin", "end"), span, strict=True)
        ]
        near = [min(((at - mark, name) for name, mark in marks), key=lambda one: abs(one[0])) for at in times]
        return "sent " + ", ".join(f"{after:+.3f} s from {name}" for after, name in near[:10])


def _outside(times: Sequence[float], windows: Sequence[Window]) -> int:
    return sum(not any(begin <= at <= end for begin, end in windows) for at in times)


def share(counts: Counter[str]) -> float:
    """Which part of the packets that could be, by DF and size, was encoded."""
    able = counts["encoded"] + counts["fallback"] - counts["fb_df_clear"] - counts["fb_not_ip"]
    able -= counts["fb_multicast"]
    return counts["encoded"] / able if able > 0 else 0.0


def chance(x: int, x_sent: int, v: int, v_sent: int, clustering: float = 1) -> float:
    """By how much x may be over v when both lose with the same chance: five standard deviations.

    That is one false alarm in some million runs. ``clustering``: see :meth:`Outcome.problems`.
    """
    if not x_sent or not v_sent:
        return 0
    p = (x + v) / (x_sent + v_sent)
    expected = v * x_sent / v_sent - v
    variance = clustering * p * (1 - p) * (1 / x_sent + 1 / v_sent)
    return expected + 5 * x_sent * variance**0.5


def run(
    world: World,
    name: str,
    fault: Callable[[World], list[Window] | None],
    *,
    flows: Sequence[Flow] | None = None,
    rate: float = 1500,
    before: float = 0.7,
    after: float = 1.0,
    seconds: float = 120,
) -> Outcome:
    """Runs tagged traffic for ``before`` seconds, under the fault, and for ``after`` seconds.

    ``fault`` takes as long as it likes within ``seconds``, and returns the spans in which it took the
    network away. On a slow machine the run is longer, until enough was sent.
    """

    def sent() -> int:
        now = world.counters()
        return now["encoded"] + now["fallback"] - start["encoded"] - start["fallback"]

    start = world.counters()
    traffic = list(flows) if flows is not None else world.flows()
    with Tagged(world.lab, traffic, rate=rate, seconds=seconds) as tagged:
        time.sleep(before)
        windows = fault(world) or []
        middle = world.counters()
        time.sleep(after)
        world.wait(lambda: sent() > 1.2 * SENT_MIN, 60)  # ARP, for one, is among them
        result = tagged.stop()
        taken = time.monotonic() - tagged.begin
    end = world.counters()
    return Outcome(name, taken, result, _difference(end, start), _difference(end, middle), windows)


def _difference(after: Counter[str], before: Counter[str]) -> Counter[str]:
    return Counter({name: after[name] - before[name] for name in after})
