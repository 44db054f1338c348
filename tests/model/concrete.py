# SPDX-License-Identifier: Apache-2.0
"""The negotiation once more, with a clock, real nonces and every packet that was ever sent.

The machine leaves much of that out. This one leaves nothing out and explores nothing: it takes one
step after the other, and says which state of the machine it is in. So a test can walk it at random and
see that the machine knows every step (nothing was left out that matters), and make it follow a
counterexample (nothing was put in that cannot be).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from .machine import CLOSED, DEAD, FREE, GRANTED, OFFERED, OPEN, ORPHANED, Action, Machine, State, Step
from .rules import BLEACHES, INTACT, REWRITES


class Event(NamedTuple):
    """Something that may happen: a verb and two numbers."""

    verb: str
    a: int = 0
    b: int = 0


class Control(NamedTuple):
    """A control packet. Its payload is true; its IP header may not be when it arrives."""

    kind: str
    flow: int
    wire: int
    nonce_b: int
    nonce_a: int
    lease: int


@dataclass(frozen=True)
class Data:
    """An encoded or bounced packet."""

    bounced: bool
    flow: int
    wire: int
    last: int  # when it may arrive at the latest


@dataclass
class Slot:
    """A key at its receiver."""

    flow: int
    nonce: int | None  # of the OFFER whose ACCEPT is awaited
    valid: int = 0
    reserved: int = 0
    dead: bool = False


@dataclass
class Pending:
    """An ACCEPT that was sent."""

    wire: int
    nonce_b: int
    nonce_a: int
    at: int


@dataclass
class Entry:
    """How a flow is encoded."""

    wire: int
    end: int
    accepted: int


@dataclass
class Sender:
    """A sender's datapath. All its times are by its own clock."""

    start: int = -1_000_000
    entries: dict[int, Entry] = field(default_factory=dict)
    pendings: dict[int, Pending] = field(default_factory=dict)
    stands_for: dict[int, tuple[int, int]] = field(default_factory=dict)  # by wire: flow, until


class Concrete:
    """A world in one concrete state."""

    def __init__(self, machine: Machine) -> None:
        self.m = machine
        self.now = 0
        self.clocks = [0 for _ in machine.senders]
        self.senders = [Sender() for _ in machine.senders]
        self.starts = [-1_000_000 for _ in machine.receivers]
        self.slots: dict[int, Slot] = {}
        self.controls: list[Control] = []
        self.data: list[Data] = []
        self.nonces = 0
        self.late = False

    def copy(self) -> Concrete:
        """An independent one in the same state."""
        return copy.deepcopy(self, {id(self.m): self.m})

    def events(self) -> Iterator[Event]:
        """What may happen next."""
        world = self.m.world
        yield Event("tick")
        for f, flow in enumerate(world.flows):
            for r in flow.routes:
                for w in self.m.wires_of[flow.sender]:
                    if self.m.receiver_of[w] == r != self.m.liar:
                        yield Event("fallback", f, w)
            if f in self.senders[flow.sender].entries:
                yield Event("encode", f)
            for w in self.m.wires_of[flow.sender]:
                yield Event("forge", f, w)
                if world.short_leases:
                    yield Event("forge-short", f, w)
        for i in range(len(self.controls)):
            yield Event("control", i, 0)
            yield Event("control", i, 1)
        for i in range(len(self.data)):
            yield Event("data", i)
        for a in self.m.senders:
            yield from (Event(v, a) for v in ("pause", "restart-sender") if v in world.faults)
        if "restart-receiver" in world.faults:
            yield from (Event("restart-receiver", r) for r in self.m.receivers if r != self.m.liar)
        if "flush" in world.faults:
            yield from (Event("flush", w) for w in self.slots)
        if "drop" in world.faults:
            yield from (Event("drop", f) for sender in self.senders for f in sender.entries)
        if "late-rewriter" in world.faults and not self.late:
            yield Event("late-rewriter")

    def run(self, event: Event) -> Step | None:
        """Lets it happen. Returns what the machine should call it, or None if nothing came of it."""
        verb, a, b = event
        if verb == "fallback":
            return self._step(self._fallback(a, b))
        if verb in ("forge", "forge-short"):
            lease = 1 if verb == "forge-short" else self.m.world.lease
            forged = Control("OFFER", a, b, self._nonce(), 0, lease)
            return self._step(self._offer(forged, True, forged=True))
        if verb == "control":
            packet = self.controls[a]
            handlers: dict[str, Callable[[Control, bool], Action | None]] = {
                "OFFER": self._offer,
                "ACCEPT": self._accept,
                "CONFIRM": self._confirm,
            }
            return self._step(handlers[packet.kind](packet, bool(b)))
        if verb == "data":
            return self._data(self.data[a])
        if verb == "encode":
            return self._encode(a)
        return self._step(self._fault(verb, a))

    def _step(self, action: Action | None, broken: str = "") -> Step | None:
        return Step(action, self.state(), broken) if action else None

    def _nonce(self) -> int:
        self.nonces += 1
        return self.nonces

    def _clock(self, f: int) -> int:
        return self.clocks[self.m.world.flows[f].sender]

    def _path(self, packet: Control) -> str:
        if self.m.receiver_of[packet.wire] == self.m.liar:
            return INTACT  # it is no ordinary host, and may sit elsewhere
        if self.late:
            return REWRITES
        return self.m.world.path_there if packet.kind == "ACCEPT" else self.m.world.path_back

    def _spoilt(self, packet: Control) -> bool:
        return "path" in self.m.rules and self._path(packet) != INTACT

    def _live(self, slot: Slot) -> bool:
        """Is the key this flow's still?"""
        return not slot.dead and (slot.valid > self.now or slot.nonce is not None)

    # The receiver.

    def _fallback(self, f: int, w: int) -> Action | None:
        world, rules = self.m.world, self.m.rules
        r = self.m.receiver_of[w]
        if self.now < self.starts[r] + self.m.t_hold:
            return None
        if "ownership" in rules and world.flows[f].owner != r:
            return None
        slot = self.slots.get(w)
        nonce = self._nonce()
        if slot and slot.flow == f and self._live(slot):
            slot.nonce = nonce
            verb = "offer-again"
        else:
            mine = [v for v, s in self.slots.items() if s.flow == f and self._live(s)]
            same = [v for v in mine if self.m.receiver_of[v] == r]
            if same and "forget" not in world.faults:
                return None
            if slot and slot.reserved > self.now and "reservation" in rules:
                return None
            if slot and slot.flow == f and slot.dead and slot.reserved > self.now:
                return None
            self.slots[w] = Slot(f, nonce)
            verb = "offer"
        self.controls.append(Control("OFFER", f, w, nonce, 0, world.lease))
        return Action(verb, f, w)

    def _accept(self, p: Control, _: bool) -> Action | None:
        slot = self.slots.get(p.wire)
        if self._spoilt(p) or not slot or slot.flow != p.flow or not self._live(slot):
            return None
        if self.m.r_nonces and slot.nonce != p.nonce_b:
            return None
        slot.nonce = None
        slot.valid = slot.reserved = self.now + self.m.t_reserve
        self.controls.append(p._replace(kind="CONFIRM"))
        pending = self.senders[self.m.sender_of[p.wire]].pendings.get(p.flow)
        expected = pending and (pending.nonce_a, pending.nonce_b) == (p.nonce_a, p.nonce_b)
        if not self.m.r_nonces or (expected and self._timely(p.flow, pending)):
            return Action("confirm", p.flow, p.wire)
        return Action("confirm-old", p.flow, p.wire)

    # The sender.

    def _timely(self, f: int, pending: Pending | None) -> bool:
        return bool(
            pending and (not self.m.r_lease_start or self._clock(f) < pending.at + self.m.world.lease)
        )

    def _offer(self, p: Control, reuse: bool, forged: bool = False) -> Action | None:
        world, f, w = self.m.world, p.flow, p.wire
        sender, now = self.senders[world.flows[f].sender], self._clock(f)
        r = self.m.receiver_of[w]
        if "solicit" in self.m.rules and r not in world.flows[f].routes:
            return None
        if now < sender.start + self.m.t_sender_hold or (not forged and self._spoilt(p)):
            return None
        if self.m.r_unique:
            holder, until = sender.stands_for.get(w, (f, 0))
            if until > now and holder != f:
                return None
            time = self.m.t_unique if p.lease == world.lease else p.lease + world.guard
            longest = until if self.m.r_longest and until > now else 0
            sender.stands_for[w] = (f, max(longest, now + time))
        slot = self.slots.get(w)
        latest = slot and slot.flow == f and slot.nonce == p.nonce_b
        pending = sender.pendings.get(f)
        if (
            reuse
            and pending
            and (pending.wire, pending.nonce_b) == (w, p.nonce_b)
            and self._timely(f, pending)
        ):
            self.controls.append(Control("ACCEPT", f, w, p.nonce_b, pending.nonce_a, p.lease))
            awaited = self.state()[self.m.pending[f]]
            return Action("accept-again" if awaited else "accept-old", f, w)
        nonce_a = self._nonce()
        sender.pendings[f] = Pending(w, p.nonce_b, nonce_a, now)
        kind = "CONFIRM" if r == self.m.liar else "ACCEPT"  # a liar answers at once
        self.controls.append(Control(kind, f, w, p.nonce_b, nonce_a, p.lease))
        if latest or r == self.m.liar:
            return Action("accept", f, w)
        if not self.m.r_nonces:
            return Action("accept-stray", f, w)
        return Action("accept-short" if p.lease < world.lease else "accept-old", f, w)

    def _confirm(self, p: Control, _: bool) -> Action | None:
        f = p.flow
        sender = self.senders[self.m.world.flows[f].sender]
        pending = sender.pendings.get(f)
        if self._spoilt(p) or not pending or pending.wire != p.wire or not self._timely(f, pending):
            return None
        if self.m.r_nonces and (pending.nonce_a, pending.nonce_b) != (p.nonce_a, p.nonce_b):
            return None
        start = pending.at if self.m.r_lease_start else self._clock(f)
        end = start + self.m.world.lease if self.m.r_lease else 1_000_000
        old = sender.entries.get(f)
        renewed = old and old.wire == p.wire and old.end > self._clock(f)
        sender.entries[f] = Entry(p.wire, end, pending.at)
        del sender.pendings[f]
        return Action("renew" if renewed else "install", f, p.wire)

    # Encoded and bounced packets.

    def _encode(self, f: int) -> Step | None:
        entry = self.senders[self.m.world.flows[f].sender].entries[f]
        if self._clock(f) >= entry.end:
            return None
        self.data.append(Data(False, f, entry.wire, self.now + self.m.world.guard))
        late = self._clock(f) >= entry.accepted + self.m.world.lease
        broken = "I2: the sender uses the key after t(ACCEPT) + lease" if late else ""
        return self._step(Action("encode", f, entry.wire), broken)

    def _data(self, p: Data) -> Step | None:
        if self.now > p.last:
            return None
        path = self.m.world.path_back if p.bounced else self.m.world.path_there
        path = REWRITES if self.late else path
        w = self.m.swapped[p.wire] if path == REWRITES else p.wire
        return self._restored(p, w, path) if p.bounced else self._arrived(p, w, path)

    def _arrived(self, p: Data, w: int, path: str) -> Step | None:
        r = self.m.receiver_of[w]
        if path == BLEACHES:
            return self._step(Action("unmarked", p.flow, w), "I6: the path takes MARK off an encoded packet")
        if r == self.m.liar:
            return self._step(
                Action("taken", p.flow, w), f"I1: {self.m.node(r)} gets a flow that is not its own"
            )
        slot = self.slots.get(w)
        if slot and slot.valid > self.now and not slot.dead:
            broken = ""
            if slot.flow != p.flow:
                broken = f"I1: a packet of {self.m.flow(p.flow)} is decoded as {self.m.flow(slot.flow)}"
            elif self.m.world.flows[p.flow].owner != r:
                broken = f"I1: {self.m.node(r)} decodes a flow that is not its own"
            return self._step(Action("decode", p.flow, w), broken)
        last = self.now + self.m.world.guard if self.m.world.fresh_guard_for_bounce else p.last
        self.data.append(Data(True, p.flow, w, last))
        return self._step(Action("bounce", p.flow, w))

    def _restored(self, p: Data, w: int, path: str) -> Step | None:
        if path == BLEACHES:
            return None
        sender, now = self.senders[self.m.sender_of[w]], self.clocks[self.m.sender_of[w]]
        using = [g for g, e in sender.entries.items() if e.wire == w and now < e.end]
        if self.m.r_unique:
            holder, until = sender.stands_for.get(w, (0, 0))
            holders = [holder] if until > now else []
        else:
            holders = using
        if not holders:
            return None
        # Were there several, it would be the worst.
        g = next((g for g in holders if g != p.flow), p.flow)
        if g in using:
            del sender.entries[g]
        broken = ""
        if g != p.flow:
            broken = f"I1: a bounced packet of {self.m.flow(p.flow)} is restored as {self.m.flow(g)}"
        return self._step(Action("restore", p.flow, w), broken)

    # Time and faults.

    def _fault(self, verb: str, a: int) -> Action | None:
        if verb in ("tick", "pause"):
            self.now += 1
            for i in self.m.senders:
                self.clocks[i] += not (verb == "pause" and i == a)
            return Action(verb, a) if verb == "pause" else Action(verb)
        if verb == "restart-sender":
            self.senders[a] = Sender(start=self.clocks[a])
        elif verb == "restart-receiver":
            self.starts[a] = self.now
            self.slots = {w: s for w, s in self.slots.items() if self.m.receiver_of[w] != a}
        elif verb == "flush":
            slot = self.slots[a]
            if slot.valid <= self.now or slot.dead:
                return None
            slot.dead, slot.nonce = True, None
            if "flush-reservation" not in self.m.rules:
                del self.slots[a]
        elif verb == "drop":
            entry = self.senders[self.m.world.flows[a].sender].entries.pop(a, None)
            if not entry or entry.end <= self._clock(a):
                return None
        else:
            self.late = True
            return Action(verb)
        return Action(verb, a)

    def state(self) -> State:
        """The machine's state that stands for this one."""
        m = self.m
        x = bytearray(m.size)
        n = len(m.flows)
        for a, sender in enumerate(self.senders):
            now = self.clocks[a]
            x[m.sender_hold[a]] = max(0, sender.start + m.t_sender_hold - now)
            for f, entry in sender.entries.items():
                if now < entry.end:
                    x[m.entry[f]] = entry.wire + 1
                    x[m.lease_left[f]] = entry.end - now if m.r_lease else 1
                    x[m.due[f]] = max(0, entry.accepted + m.world.lease - now)
            for w, (f, until) in sender.stands_for.items():
                if until > now:
                    x[m.unique[w]], x[m.unique_left[w]] = f + 1, until - now
            for f, pending in sender.pendings.items():
                self._write_pending(x, f, pending)
        for r in m.receivers:
            x[m.hold[r]] = max(0, self.starts[r] + m.t_hold - self.now)
        for w, slot in self.slots.items():
            self._write_slot(x, w, slot)
        if not m.r_nonces:
            for p in self.controls:
                if p.kind != "OFFER":
                    x[(m.old_accept if p.kind == "ACCEPT" else m.old_confirm)[p.wire * n + p.flow]] = 1
        for d in self.data:
            i = (m.bounced if d.bounced else m.encoded)[d.wire * n + d.flow]
            x[i] = max(x[i], d.last + 1 - self.now)
        x[m.late[0]] = self.late
        return bytes(x)

    def _write_pending(self, x: bytearray, f: int, pending: Pending) -> None:
        m = self.m
        if not self._timely(f, pending):
            return
        sent = {p.kind for p in self.controls if p.nonce_a == pending.nonce_a and p.kind != "OFFER"}
        slot = self.slots.get(pending.wire)
        confirmed = m.r_nonces and "CONFIRM" in sent
        awaited = slot is not None and slot.flow == f and slot.nonce == pending.nonce_b
        if confirmed or awaited or not m.r_nonces:
            x[m.pending[f]] = pending.wire + 1
            x[m.pending_due[f]] = max(0, pending.at + m.world.lease - self._clock(f))
            x[m.confirmed[f]] = confirmed or m.receiver_of[pending.wire] == m.liar

    def _write_slot(self, x: bytearray, w: int, slot: Slot) -> None:
        m = self.m
        if slot.dead:
            kind = DEAD if slot.reserved > self.now else FREE
        elif slot.valid > self.now:
            kind = GRANTED
        else:
            kind = OFFERED if slot.nonce is not None else FREE
        if kind == FREE:
            return
        x[m.slot[w]], x[m.slot_flow[w]] = kind, slot.flow + 1
        x[m.reserved[w]] = max(0, slot.reserved - self.now)
        if slot.nonce is None:
            x[m.round[w]] = CLOSED
        elif not m.r_nonces:
            x[m.round[w]] = OPEN
        else:
            pending = self.senders[m.sender_of[w]].pendings.get(slot.flow)
            awaited = pending.nonce_a if pending and self._timely(slot.flow, pending) else None
            orphans = [
                p
                for p in self.controls
                if p.kind == "ACCEPT" and p.nonce_b == slot.nonce and p.nonce_a != awaited
            ]
            x[m.round[w]] = ORPHANED if orphans else OPEN


def follow(machine: Machine, trace: tuple[Step, ...]) -> Concrete | None:
    """Takes the steps of a trace in turn, with real packets; None if that is impossible.

    What breaks I1 or I6 in the trace has to break it here, too.
    """

    def onward(world: Concrete, i: int) -> Concrete | None:
        if i == len(trace):
            return world
        want = trace[i]
        for event in world.events():
            other = world.copy()
            step = other.run(event)
            if not step or (step.action, step.state) != (want.action, want.state):
                continue
            if want.broken[:2] in ("I1", "I6") and step.broken != want.broken:
                continue
            if end := onward(other, i + 1):
                return end
        return None

    return onward(Concrete(machine), 0)
