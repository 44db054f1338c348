# SPDX-License-Identifier: Apache-2.0
"""How much goes through links now, by link, peer and flow.

The datapath counts links only. So while somebody measures, two programs that count by source and
destination stand in front of each link's own (kmod_ebpf/src/count.c).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import time
from collections.abc import Mapping

from kmod_ebpf import capture as guests
from kmod_ebpf import loader
from kmod_ebpf import maps as m

from ._datapath import api, require_root
from ._errors import InputError
from ._flow import flows, keys
from ._guest import Guest, guest
from ._link import links
from ._looker import Looker
from ._model import FlowRate, LinkRate, Rates, Traffic
from ._netns import Netns, here, netns

_Key = tuple[str, str, str, str]  # link, direction, source, destination


def _load(conf: m.Conf, called: Mapping[str, str]) -> loader.Loaded:
    return guests.load_count(conf, called)


def _per_second(now: Traffic, before: Traffic, seconds: float) -> Traffic:
    """A rate; what was counted anew meanwhile starts from 0."""
    packets, octets = now.packets - before.packets, now.bytes - before.bytes
    if packets < 0 or octets < 0:
        packets, octets = now.packets, now.bytes
    return Traffic(round(packets / seconds), round(octets / seconds))


class Meter(Looker):
    """Measures from one read() to the next. A context manager, made by meter()."""

    def __init__(self, link: str | None) -> None:
        super().__init__()
        self._only = link
        self._guests: dict[str, tuple[int, Guest, contextlib.ExitStack]] = {}
        self._home = here()
        self._close.callback(os.close, self._home)
        self._close.callback(self._leave)
        self._before: tuple[float, dict[str, tuple[Traffic, Traffic, Traffic, Traffic]], dict[_Key, Traffic]]
        try:
            self._before = self._count()[0]
        except BaseException:
            self.close()
            raise

    def _leave(self) -> None:
        for _, _, close in self._guests.values():
            close.close()
        self._guests = {}

    def _count(
        self,
    ) -> tuple[
        tuple[float, dict[str, tuple[Traffic, Traffic, Traffic, Traffic]], dict[_Key, Traffic]],
        dict[tuple[str, str, str], str],
    ]:
        """Counts of links and flows now; and the peers of flows by link, source and destination."""
        present = links(self._only)
        wanted = {link.name: link.index for link in present}
        for name in [n for n, (index, _, _) in self._guests.items() if wanted.get(n) != index]:
            self._guests.pop(name)[2].close()
        for name in wanted.keys() - self._guests.keys():
            with contextlib.ExitStack() as undo, contextlib.suppress(InputError):  # it has just gone
                at = undo.enter_context(guest(name, _load, loader.COUNT[1]))
                self._guests[name] = at.ifindex, at, undo.pop_all()
        moment = time.monotonic()
        by_link = {
            x.name: (x.traffic.rx_fast, x.traffic.rx_fallback, x.traffic.tx_fast, x.traffic.tx_fallback)
            for x in present
            if x.traffic
        }
        by_flow: dict[_Key, Traffic] = {}
        for name, (_, at, _) in self._guests.items():
            for key, packets, octets in guests.counted(at.loaded):
                size = 4 if key.family == 4 else 16
                ends = [str(ipaddress.ip_address(bytes(raw)[:size])) for raw in (key.src, key.dst)]
                direction = "rx" if key.direction == m.FRAME_IN else "tx"
                by_flow[name, direction, ends[0], ends[1]] = Traffic(packets, octets)
        peers = {(f.link, f.source, f.destination): f.peer for f in flows()}
        peers |= {(k.link, k.source, k.destination): k.peer for k in keys() if k.state == "granted"}
        return (moment, by_link, by_flow), peers

    def read(self) -> Rates:
        """What went through since the last call, a second. Raises XmasqError, InputError."""
        with netns(self._home):
            now, peers = self._count()
        then, self._before = self._before, now
        seconds = max(now[0] - then[0], 1e-3)
        per_link = tuple(
            LinkRate(
                name,
                *(
                    _per_second(value, old, seconds)
                    for value, old in zip(values, then[1].get(name, values), strict=True)
                ),
            )
            for name, values in sorted(now[1].items())
        )
        per_flow = [
            FlowRate(
                link=key[0],
                direction=key[1],
                source=key[2],
                destination=key[3],
                peer=peers.get((key[0], key[2], key[3])),
                rate=_per_second(traffic, then[2].get(key, Traffic()), seconds),
            )
            for key, traffic in now[2].items()
            if then[2].get(key) != traffic
        ]
        per_flow.sort(key=lambda one: (-one.rate.bytes, one.link, one.source, one.destination))
        return Rates(seconds, per_link, tuple(per_flow))


@api
def meter(link: str | None = None, *, netns: Netns | None = None) -> Meter:
    """Starts to measure rates of links and flows; those of all links, or of one.

    While it lasts each packet of the links costs a little more. Use the result in a `with`, or close
    it. Raises InputError for an unknown link, XmasqError if the kernel refuses.
    """
    require_root()
    return Meter(link)
