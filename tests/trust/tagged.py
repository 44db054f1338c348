# SPDX-License-Identifier: Apache-2.0
"""The tagged-traffic checker: datagrams that say themselves where they belong.

::

    with Tagged(lab, mesh(overlay), rate=1000, seconds=20) as tagged:
        ...  # faults
        result = tagged.stop()
    assert result.of(overlay.vni).misdelivered == 0

Every datagram carries its VNI, source, destination, flow and number. Each receiver compares that with
who it is, and with the addresses, the source port and the DSCP that the datagram arrived with. A packet
decoded with another flow's key carries that flow's addresses, so it reaches a wrong container's socket,
or the right one with a wrong sender; a packet socket in each container sees what reaches it on any other
port or address; and sockets on the hosts see what their own stacks get.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.lab import Container, Host, Lab, LabError, Overlay, patience

#: Destination ports of the tagged datagrams.
PORTS = (7000, 7001, 20000)
#: Bytes of UDP payload, by the family of the containers' addresses: small ones, the longest that is encoded
#: with DF clear and the next one, and one that also fits a plain VXLAN container's MTU of 1450, or of 1430.
SIZES = {4: (32, 64, 300, 900, 1252, 1253, 1400), 6: (32, 64, 300, 900, 1252, 1253, 1350)}
#: No run sends more than this many datagrams a second.
RATE_MAX = 5000
#: No run sends more datagrams than this in all.
COUNT_MAX = 400_000
#: How long, in seconds, what is under way may take after the last datagram.
DRAIN = 0.8


@dataclass(frozen=True)
class Flow:
    """Datagrams from one container address to another, all alike but for size.

    ``tos`` is the whole octet. With ``gaps`` the flow sends ``burst`` datagrams, ``pace`` seconds apart,
    and is then idle for one of these times, in seconds, chosen by chance. Other flows share the run's
    rate, each datagram about as long after the one before.
    """

    source: Container
    target: Container
    vni: int
    source_address: str = ""
    target_address: str = ""
    port: int = PORTS[0]
    df: bool = True
    tos: int = 0
    sizes: Sequence[int] = SIZES[4]
    burst: int = 1
    gaps: Sequence[float] = ()
    pace: float = 0.01

    @property
    def rate(self) -> float:
        """Datagrams a second on average, of a flow with gaps; 0 of another."""
        if not self.gaps:
            return 0
        return self.burst / (self.burst * self.pace + sum(self.gaps) / len(self.gaps))


def mesh(
    overlay: Overlay,
    *,
    df: Sequence[bool] = (True, False),
    tos: Sequence[int] = (0,),
    containers: Sequence[Container] | None = None,
    **kwargs: Any,
) -> list[Flow]:
    """Flows between all pairs of containers on different hosts, over all ports in turn.

    ``df`` and ``tos``: one flow for each combination; with IPv6 there is no ``df``. ``kwargs`` go to
    :class:`Flow`.
    """
    kwargs.setdefault("sizes", SIZES[overlay.inner])
    df = df if overlay.inner == 4 else (True,)
    ports = itertools.cycle(PORTS)
    return [
        Flow(a, b, overlay.vni, port=next(ports), df=one_df, tos=one_tos, **kwargs)
        for a, b in itertools.permutations(containers or overlay.containers, 2)
        if a.host is not b.host
        for one_df in df
        for one_tos in tos
    ]


def cross(overlay: Overlay, count: int, *, both_ways: bool = True, **kwargs: Any) -> list[Flow]:
    """Flows between each of ``count`` addresses of the first container and each of the last one's.

    The addresses are new ones; the network must be routed, and ``wide`` if ``count`` is over 13.
    """
    a, b = overlay.containers[0], overlay.containers[-1]
    flows = []
    for one, other in itertools.product(_more_addresses(a, count), _more_addresses(b, count)):
        flows.append(Flow(a, b, overlay.vni, one, other, **kwargs))
        if both_ways:
            flows.append(Flow(b, a, overlay.vni, other, one, **kwargs))
    return flows


def _more_addresses(container: Container, count: int) -> list[str]:
    net, _, first = container.address.rpartition(".")
    addresses = [f"{net}.{int(first) + at}" for at in range(count)]
    container.ip(*(f"addr replace {address}/32 dev eth0" for address in addresses[1:]))
    container.host.ip(*(f"route replace {address}/32 dev {container.veth}" for address in addresses[1:]))
    return addresses


@dataclass
class Tally:
    """What became of the datagrams of one VNI.

    ``lost_at`` and the first element of ``astray`` are ``time.monotonic()`` when the datagram was sent
    and arrived; ``at_host`` is when one reached a host's own stack. ``refused`` were not taken by the
    sender's kernel and do not count as sent.
    """

    sent: int = 0
    delivered: int = 0
    duplicated: int = 0
    reordered: int = 0
    refused: int = 0
    lost_at: list[float] = field(default_factory=list)
    astray: list[tuple[float, str]] = field(default_factory=list)
    at_host: list[float] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """How many were not delivered where they belong."""
        return self.sent - self.delivered

    @property
    def misdelivered(self) -> int:
        """How many arrived where they do not belong, or as what they are not."""
        return len(self.astray)

    def lost_outside(self, windows: Iterable[tuple[float, float]]) -> int:
        """How many of the lost were sent outside these spans of ``time.monotonic()``."""
        spans = list(windows)
        return sum(not any(begin <= at <= end for begin, end in spans) for at in self.lost_at)

    def lost_between(self, begin: float, end: float = float("inf")) -> int:
        """How many of the lost were sent in this span of ``time.monotonic()``."""
        return sum(begin <= at <= end for at in self.lost_at)


@dataclass
class Result:
    """A run's tallies by VNI. ``corrupt``: datagrams whose content changed on the way."""

    tallies: dict[int, Tally]
    corrupt: int

    def of(self, vni: int) -> Tally:
        """The tally of one VNI, of all zeros if it sent nothing."""
        return self.tallies.get(vni, Tally())

    def but(self, vni: int) -> Tally:
        """The tally of all VNIs but one."""
        total = Tally()
        for tally in (tally for at, tally in self.tallies.items() if at != vni):
            for name, value in vars(tally).items():
                setattr(total, name, getattr(total, name) + value)
        return total

    @property
    def misdelivered(self) -> int:
        """In all VNIs."""
        return sum(tally.misdelivered for tally in self.tallies.values())


class Tagged:
    """A run of tagged traffic; it has begun when the constructor returns.

    ``rate`` is in datagrams a second over all flows without gaps; with those that have some it is at
    most :data:`RATE_MAX`. The run ends after ``seconds`` or when stopped; after ``count`` datagrams it only
    receives.
    ``seed`` decides sizes and pauses.
    """

    def __init__(
        self,
        lab: Lab,
        flows: Sequence[Flow],
        *,
        rate: float = 1000,
        seconds: float = 60,
        count: int = COUNT_MAX,
        drain: float = patience(DRAIN),
        seed: int | None = None,
    ) -> None:
        if not flows:
            raise LabError("tagged traffic needs flows")
        steady = sum(not flow.gaps for flow in flows)
        total = sum(flow.rate for flow in flows) + (rate if steady else 0)
        if not 0 < total <= RATE_MAX:
            raise LabError(f"rate {total:g}: up to {RATE_MAX} datagrams a second are allowed")
        self._lab = lab
        self._limit = seconds + drain + patience(30)
        containers = list(dict.fromkeys(c for flow in flows for c in (flow.source, flow.target)))
        numbers = {container: number for number, container in enumerate(containers)}
        vnis = {c: flow.vni for flow in flows for c in (flow.source, flow.target)}
        config = {
            "family": 6 if ":" in flows[0].source.address else 4,
            "run": int.from_bytes(os.urandom(4), "big"),
            "seed": int.from_bytes(os.urandom(4), "big") if seed is None else seed,
            "seconds": seconds,
            "count": count,
            "drain": drain,
            "ports": PORTS,
            "hosts": [str(host.path) for host in _hosts(containers)],
            "containers": [{"netns": str(c.path), "name": c.name, "vni": vnis[c]} for c in containers],
            "flows": [
                {
                    "src": numbers[flow.source],
                    "dst": numbers[flow.target],
                    "source": flow.source_address or flow.source.address,
                    "target": flow.target_address or flow.target.address,
                    "port": flow.port,
                    "df": flow.df,
                    "tos": flow.tos,
                    "vni": flow.vni,
                    "sizes": flow.sizes,
                    "interval": flow.pace if flow.gaps else steady / rate,
                    "burst": flow.burst,
                    "gaps": flow.gaps,
                }
                for flow in flows
            ],
        }
        self._child = lab.start(
            [sys.executable, "-m", "tests.trust.generator"], stdin=subprocess.PIPE, stderr=None
        )
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(config) + "\n")
        self._child.stdin.flush()
        if self._line(patience(20)) != "ready":
            raise LabError("the tagged traffic's generator did not start")
        self.begin = time.monotonic()
        self._child.stdin.write("start\n")
        self._child.stdin.flush()
        self._result: Result | None = None

    def __enter__(self) -> Tagged:
        return self

    def __exit__(self, *_: object) -> None:
        self._lab.kill(self._child)

    def _line(self, timeout: float) -> str:
        out = self._child.stdout
        assert out is not None
        if not select.select([out], [], [], timeout)[0]:
            raise LabError(f"the tagged traffic's generator has said nothing for {timeout:g} s")
        return out.readline().strip()

    def stop(self) -> Result:
        """Sends no more, waits for what is under way, and returns what was seen."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        return self.wait()

    def wait(self) -> Result:
        """Waits until the run's time is up; returns what was seen."""
        if self._result is None:
            line = self._line(self._limit)
            if not line:
                raise LabError("the tagged traffic's generator broke off")
            self._result = _result(json.loads(line))
            self._lab.kill(self._child)
        return self._result


def _hosts(containers: Sequence[Container]) -> list[Host]:
    return list(dict.fromkeys(container.host for container in containers))


def _result(report: dict[str, Any]) -> Result:
    tallies: dict[int, Tally] = {}
    for flow in report["flows"]:
        tally = tallies.setdefault(flow["vni"], Tally())
        for name in ("sent", "delivered", "duplicated", "reordered", "refused"):
            setattr(tally, name, getattr(tally, name) + flow[name])
        tally.lost_at += flow["lost_at"]
    for at, vni, sent_at, text in report["astray"]:
        tallies[vni].astray.append((at, f"{text}, {at - sent_at:.3f} s old"))
    for at, vni in report["at_host"]:
        tallies[vni].at_host.append(at)
    for tally in tallies.values():
        tally.lost_at.sort()
    return Result(tallies, report["corrupt"])
