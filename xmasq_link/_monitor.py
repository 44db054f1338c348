# SPDX-License-Identifier: Apache-2.0
"""What happens, while it happens: events of the datapath (kmod_ebpf/src/event.h), and links that come and go.

The datapath writes into rings of a fixed size; what does not fit there is counted, and reported as an
event. That a lease ends without a renewal is no event in the datapath: it is known here, from the
events before.
"""

from __future__ import annotations

import contextlib
import heapq
import ipaddress
import os
import select
import socket
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from pyroute2 import IPRoute

from kmod_ebpf import bpf, perf
from kmod_ebpf import maps as m

from . import _hold
from ._datapath import Datapath, api, require_root, u32
from ._errors import XmasqError
from ._link import find_links, links
from ._looker import Looker, lease
from ._model import Event, Link
from ._netns import Netns, here, locked, netns

_RING = 1 << 17  # bytes for each CPU: about a thousand events
_TRACKED = 65_536  # flows whose leases are watched, as many as the datapath has
_RTMGRP_LINK = 1
#: After a change of a device, its link may take a moment to be in order.
_SETTLE, _LOOK_EACH = 2.0, 0.2
_MS = 1_000_000
#: Kinds that end a flow, and why it has ended.
_ENDS = {
    "flow_bounced": "bounced",
    "flow_withdrawn": "withdrawn",
    "flow_elsewhere": "the FDB sends it elsewhere",
    "flow_refused": "a router refused it",
}
_HAVE_LEASE = {"flow_encoded", "flow_renewed", "key_granted", "key_renewed"}


def _listener(number: int) -> socket.socket | None:
    """A listener's place in this network namespace."""
    return lease(f"xmasq_listen{number}")


class _Source:
    """One datapath's events."""

    def __init__(self, dp: Datapath, number: int, undo: contextlib.ExitStack) -> None:
        self.family = dp.family
        self._number = number
        self.listen = bpf.Map.from_fd(os.dup(dp.maps["listen"].fd))
        undo.callback(self.listen.close)
        self.events = bpf.Map.from_fd(os.dup(dp.maps["events"].fd))
        undo.callback(self.events.close)
        self._links = bpf.Map.from_fd(os.dup(dp.maps["links"].fd))
        undo.callback(self._links.close)
        self._link_type = dp.types.Link
        self.id = self.events.id
        self.reader = perf.Reader(self.events, first=number, step=m.EVENT_LISTENERS, ring=_RING)
        undo.callback(self.reader.close)
        undo.callback(self._switch, False)
        self._switch(True)
        self._lost = 0

    def ifindex(self, where: int) -> int:
        """The device of a flow (Flow.ifindex)."""
        if not where & m.WHERE_EXTERNAL:
            return where
        raw = self._links.lookup(u32(where >> 24 & (m.MAX_EXTERNAL - 1))) or b""
        return int(self._link_type.parse(raw).ifindex)

    def _switch(self, on: bool) -> None:
        """Tells the datapath who listens; with the namespace's lock held."""
        raw = self.listen.lookup(u32(0)) or bytes(4)
        mask = int.from_bytes(raw, "little")
        for number in range(m.EVENT_LISTENERS):
            if number != self._number and mask >> number & 1:
                free = _listener(number)
                if free:  # it was killed
                    free.close()
                    mask &= ~(1 << number)
        mask = mask | 1 << self._number if on else mask & ~(1 << self._number)
        self.listen.update(u32(0), u32(mask))

    def lost(self) -> int:
        """How many events had no room since the last call."""
        before, self._lost = self._lost, self.reader.lost
        return self._lost - before

    def address(self, raw: Any) -> str | None:
        data = bytes(raw)[: 4 if self.family == 4 else 16]
        return str(ipaddress.ip_address(data)) if any(data) else None


class Monitor(Looker):
    """Events as they come. A context manager and an iterator without end, made by monitor().

    lost: how many events there was no room for so far; each loss is also an event, "lost".
    """

    def __init__(self) -> None:
        super().__init__()
        self.lost = 0
        self._ready: deque[Event] = deque()
        self._leases: dict[tuple[int, bytes], tuple[int, Event]] = {}
        self._ends: list[tuple[int, int, tuple[int, bytes]]] = []
        self._peers_on: list[tuple[int, int, Event]] = []
        self._serial = 0
        self._sources: dict[int, tuple[_Source, contextlib.ExitStack]] = {}
        self._links: dict[int, Link] = {}
        self._open = True
        self._look_until = self._looked = 0.0
        with contextlib.ExitStack() as undo:
            self._start(undo)
            self._close = undo.pop_all()

    def _start(self, undo: contextlib.ExitStack) -> None:
        for number in range(m.EVENT_LISTENERS):
            place = _listener(number)
            if place:
                break
        else:
            raise XmasqError(f"{m.EVENT_LISTENERS} others listen in this network namespace already")
        undo.callback(place.close)
        self._number = number
        self._home = here()
        undo.callback(os.close, self._home)
        self._wall = time.time_ns() - _hold.now_ns()
        self._changes = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        undo.callback(self._changes.close)
        self._changes.bind((0, _RTMGRP_LINK))
        undo.callback(self._release)
        self._links = {link.index: link for link in self._look()}

    def _release(self) -> None:
        with netns(self._home), locked():
            for _, close in self._sources.values():
                close.close()
        self._sources = {}

    def _look(self) -> list[Link]:
        """The links as they are; listens to new datapaths, and lets go of those that are gone."""
        self._looked = time.monotonic()
        with netns(self._home):
            with locked(), IPRoute() as ipr, find_links(ipr, None) as found:
                alive = set()
                for dp, _ in found:
                    if "events" not in dp.maps or "listen" not in dp.maps:
                        continue
                    alive.add(dp.maps["events"].id)
                    if dp.maps["events"].id not in self._sources:
                        with contextlib.ExitStack() as undo:
                            source = _Source(dp, self._number, undo)
                            self._sources[source.id] = source, undo.pop_all()
                for gone in self._sources.keys() - alive:
                    self._sources.pop(gone)[1].close()
            return links()

    def _compare(self) -> None:
        """Makes events of what has changed about the links."""
        now = {link.index: link for link in self._look()}
        before, self._links = self._links, now
        at = time.time_ns()
        for index in before.keys() - now.keys():
            self._ready.append(Event(at, "link_removed", link=before[index].name))
        for index, link in now.items():
            old = before.get(index)
            if old is None:
                self._ready.append(Event(at, "link_added", link=link.name, local=link.local))
                continue
            for name in ("name", "up", "mtu", "fastpath", "address", "lease_ms"):
                if getattr(old, name) != getattr(link, name):
                    value = str(getattr(link, name)).lower()
                    self._ready.append(Event(at, "link_changed", link=link.name, reason=f"{name} {value}"))

    def read(self, timeout: float | None = 0) -> list[Event]:
        """The events that have come, in order. timeout: seconds to wait if there are none; None: for
        ever. May return none all the same."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._open and not self._ready:
            self._gather()
            if self._ready:
                break
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            self._wait(left)
        found = list(self._ready)
        self._ready.clear()
        return found

    def _wait(self, left: float | None) -> None:
        poll = select.poll()
        poll.register(self._changes, select.POLLIN)
        for source, _ in self._sources.values():
            poll.register(source.reader.fileno(), select.POLLIN)
        times = [1e9 if left is None else left]
        now = _hold.now_ns()
        for heap in (self._ends, self._peers_on):
            if heap:
                times.append(max(0.0, (heap[0][0] - now) / 1e9) + 0.001)
        if time.monotonic() < self._look_until:
            times.append(_LOOK_EACH)
        wait = min(times)
        poll.poll(None if wait >= 1e9 else wait * 1000)

    def _gather(self) -> None:
        for source, _ in list(self._sources.values()):
            for raw in source.reader.read():
                self._ready.append(self._event(source, m.Event.parse(raw)))
            if lost := source.lost():
                self.lost += lost
                self._ready.append(Event(time.time_ns(), "lost", count=lost))
        self._run_out()
        with contextlib.suppress(BlockingIOError):
            while self._changes.recv(1 << 16):
                self._look_until = time.monotonic() + _SETTLE
        moment = time.monotonic()
        if moment < self._look_until and moment - self._looked >= _LOOK_EACH:
            self._compare()

    def _event(self, source: _Source, e: m.Event) -> Event:
        kind = m.EVENT_KINDS[e.kind - 1] if 1 <= e.kind <= len(m.EVENT_KINDS) else f"unknown_{e.kind}"
        ifindex = source.ifindex(e.ifindex)
        link = self._links.get(ifindex)
        flow: dict[str, Any] = {}
        if e.has_flow:
            flow = {
                "source_mac": bytes(e.smac).hex(":"),
                "destination_mac": bytes(e.dmac).hex(":"),
                "source": source.address(e.sip),
                "destination": source.address(e.dip),
                "dscp": e.dscp,
                "df": not e.variant & m.VAR_NODF,
            }
            if kind == "mac_moved":
                flow = {"source_mac": flow["source_mac"]}
        reason = _ENDS.get(kind)
        if kind == "ctl_refused":
            reason = m.COUNTERS[e.value] if e.value < len(m.COUNTERS) else str(e.value)
        event = Event(
            time_ns=e.at + self._wall,
            kind="flow_ended" if kind in _ENDS else kind,
            link=link.name if link else (f"if{ifindex}" if ifindex else None),
            local=source.address(e.local),
            peer=source.address(e.peer),
            key=e.key or None,
            duration_ms=e.value if kind in _HAVE_LEASE or kind == "peer_off" else None,
            reason=reason,
            **flow,
        )
        self._track(source, e, kind, event)
        return event

    def _track(self, source: _Source, e: m.Event, kind: str, event: Event) -> None:
        """Remembers when a lease, or a verdict on a peer, runs out."""
        self._serial += 1
        if kind == "peer_off":
            heapq.heappush(self._peers_on, (e.at + e.value * _MS, self._serial, event))
            return
        if not kind.startswith("flow_"):
            return
        flow = (source.id, bytes(e.sip) + bytes(e.dip) + bytes(e.smac) + bytes(e.dmac))
        flow = (flow[0], flow[1] + bytes([e.dscp, e.variant]) + u32(e.ifindex))
        self._leases.pop(flow, None)
        if kind in _HAVE_LEASE:
            end = e.at + e.value * _MS
            while len(self._leases) >= _TRACKED:
                del self._leases[next(iter(self._leases))]
            self._leases[flow] = end, event
            heapq.heappush(self._ends, (end, self._serial, flow))
            if len(self._ends) > 4 * _TRACKED:
                self._ends = [x for x in self._ends if self._leases.get(x[2], (0,))[0] == x[0]]
                heapq.heapify(self._ends)

    def _run_out(self) -> None:
        """Makes events of leases and verdicts that have ended by now."""
        now = _hold.now_ns()
        while self._ends and self._ends[0][0] <= now:
            end, _, flow = heapq.heappop(self._ends)
            if self._leases.get(flow, (0,))[0] == end:
                _, event = self._leases.pop(flow)
                self._ready.append(
                    event.replace(
                        time_ns=end + self._wall, kind="flow_ended", reason="expired", duration_ms=None
                    )
                )
        while self._peers_on and self._peers_on[0][0] <= now:
            end, _, event = heapq.heappop(self._peers_on)
            self._ready.append(event.replace(time_ns=end + self._wall, kind="peer_on", duration_ms=None))

    def __iter__(self) -> Iterator[Event]:
        while self._open:
            yield from self.read(None)

    def close(self) -> None:
        """Stops listening. May be called more than once."""
        self._open = False
        super().close()


@api
def monitor(*, netns: Netns | None = None) -> Monitor:
    """Starts to listen to what happens to the links of a namespace, also to those that come later.

    Up to four may listen in a namespace at once. Use the result in a `with`, or close it. Raises
    XmasqError if the kernel refuses or four others listen, InputError for a bad namespace.
    """
    require_root()
    return Monitor()
