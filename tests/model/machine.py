# SPDX-License-Identifier: Apache-2.0
"""The negotiation as a state machine: what each end, the network and the clock may do next.

A state is a string of bytes. Times are what remains of them in ticks, so the state space is finite
without any bound on time, rounds or restarts. What goes for the network (docs/model.md has the reasons):

- Control packets are lost, copied and delayed without end: one that was sent may arrive at any later step.
- A nonce is compared for equality with the one that is waited for. It is the expected one, or it is wrong
  for ever; so a control packet that can no longer be good is dropped from the state.
- Encoded and bounced packets are lost, copied and delayed up to the guard.
- Every flow has packets to send, so a copy of its fallback is always under way to each place it goes to.
- Anybody can forge an OFFER from a peer, with a wrong nonce.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .rules import BLEACHES, INTACT, REWRITES, RULES, World

State = bytes
FREE, OFFERED, GRANTED, DEAD = range(4)  # of a slot; DEAD is reserved, but no longer decoded
CLOSED, OPEN, ORPHANED = range(3)  # a slot's round; ORPHANED: with an ACCEPT whose sender has forgotten it

_DECREMENT = bytes([0, *range(255)])


class Action(NamedTuple):
    """What happened in a step: a verb, and a flow, wire or node as the verb needs."""

    verb: str
    a: int = -1
    b: int = -1


class Step(NamedTuple):
    """A step: what happened, the state after it, and the property that it breaks, if any."""

    action: Action
    state: State
    broken: str


class Machine:
    """All that may happen in a world under a set of rules.

    A *wire* is a number for (sender, receiver, key): what an encoded packet says about itself.
    """

    def __init__(self, world: World, rules: frozenset[str]) -> None:
        unknown = rules - RULES.keys()
        if unknown:
            raise ValueError(f"no such rule: {', '.join(sorted(unknown))}")
        self.world = world
        self.rules = rules
        self.flows = range(len(world.flows))
        self.senders = range(world.senders)
        self.receivers = range(len(world.receivers))
        self.liar = world.receivers.find(world.liar) if world.liar else -1
        n, m = len(self.flows), world.senders * len(world.receivers) * world.keys
        self.wires = range(m)
        self.sender_of = [w // world.keys // len(world.receivers) for w in self.wires]
        self.receiver_of = [w // world.keys % len(world.receivers) for w in self.wires]
        self.flows_of = [[f for f in self.flows if world.flows[f].sender == a] for a in self.senders]
        self.wires_of = [[w for w in self.wires if self.sender_of[w] == a] for a in self.senders]
        # What a path that rewrites makes of a key: the next one.
        self.swapped = [w // world.keys * world.keys + (w + 1) % world.keys for w in self.wires]

        size = 0

        def field(count: int) -> range:
            nonlocal size
            size += count
            return range(size - count, size)

        # Times first: a tick decrements them all at once.
        self.lease_left = field(n)  # of the flow's entry, as the sender reckons
        self.due = field(n)  # until t(ACCEPT) + lease of that entry, in truth
        self.pending_due = field(n)  # until t(ACCEPT) + lease of the open ACCEPT
        self.unique_left = field(m)
        self.reserved = field(m)
        self.sender_hold = field(world.senders)
        self.hold = field(len(world.receivers))
        self.encoded = field(m * n)  # [wire * flows + flow]: how long such a packet may still arrive
        self.bounced = field(m * n)
        self.times = size
        self.entry = field(n)  # wire + 1, 0: none
        self.pending = field(n)  # wire + 1
        self.confirmed = field(n)  # a CONFIRM of the pending ACCEPT is under way
        self.unique = field(m)  # flow + 1
        self.slot_flow = field(m)  # flow + 1
        self.slot = field(m)
        self.round = field(m)
        self.old_accept = field(m * n)  # without nonces: such a packet was sent once
        self.old_confirm = field(m * n)
        self.late = field(1)
        self.size = size

        has = rules.__contains__
        self.r_lease = has("lease")
        self.r_lease_start = has("lease-start")
        self.r_reservation = has("reservation")
        self.r_flush_reservation = has("flush-reservation")
        self.r_solicit = has("solicit")
        self.r_ownership = has("ownership")
        self.r_path = has("path")
        self.r_nonces = has("nonces")
        self.r_unique = has("sender-unique")
        self.r_longest = has("sender-longest")
        span = world.lease + world.guard
        self.t_reserve = span - world.short_reservation
        self.t_hold = span - world.short_hold_down if has("hold-down") else 0
        self.t_unique = span - world.short_unique
        # A packet may arrive a whole guard after it was sent, in that very tick; so until after it.
        self.t_sender_hold = world.guard + 1 - world.short_sender_hold if has("sender-hold") else 0
        self.frozen = {
            a: [
                *(
                    i
                    for f in self.flows_of[a]
                    for i in (self.lease_left[f], self.due[f], self.pending_due[f])
                ),
                *(self.unique_left[w] for w in self.wires_of[a]),
                self.sender_hold[a],
            ]
            for a in self.senders
        }

    def initial(self) -> State:
        """Nothing is known, nothing is under way, and no hold-down is needed."""
        return bytes(self.size)

    # The state is changed in place by these; x is a copy.

    def _forget_pending(self, x: bytearray, f: int) -> None:
        w = x[self.pending[f]] - 1
        if w < 0:
            return
        if self.r_nonces and not x[self.confirmed[f]]:
            x[self.round[w]] = ORPHANED
        x[self.pending[f]] = x[self.confirmed[f]] = x[self.pending_due[f]] = 0

    def _close_round(self, x: bytearray, w: int) -> None:
        """The receiver forgets the nonce of its OFFER: ACCEPTs of it come too late."""
        f = x[self.slot_flow[w]] - 1
        x[self.round[w]] = CLOSED
        if self.r_nonces and f >= 0 and x[self.pending[f]] == w + 1 and not x[self.confirmed[f]]:
            x[self.pending[f]] = x[self.pending_due[f]] = 0

    def _free(self, x: bytearray, w: int) -> None:
        self._close_round(x, w)
        x[self.slot_flow[w]] = x[self.slot[w]] = x[self.reserved[w]] = 0

    def _grant(self, x: bytearray, w: int) -> None:
        x[self.slot[w]] = GRANTED
        x[self.reserved[w]] = self.t_reserve
        self._close_round(x, w)

    def _drop_entry(self, x: bytearray, f: int) -> None:
        x[self.entry[f]] = x[self.lease_left[f]] = x[self.due[f]] = 0

    def _now(self, path: str, s: State) -> str:
        """What a path does now."""
        return REWRITES if s[self.late[0]] else path

    # Each kind of step yields the steps of its kind that are possible in s.

    def _tick(self, s: State, paused: int = -1) -> State:
        x = bytearray(s[: self.times].translate(_DECREMENT) + s[self.times :])
        if paused >= 0:
            for i in self.frozen[paused]:
                x[i] = s[i]
        for f in self.flows:
            if x[self.entry[f]]:
                if not self.r_lease:
                    x[self.lease_left[f]] = 1
                elif not x[self.lease_left[f]]:
                    self._drop_entry(x, f)
            if x[self.pending[f]] and not x[self.pending_due[f]] and self.r_lease_start:
                self._forget_pending(x, f)
        for w in self.wires:
            if x[self.unique[w]] and not x[self.unique_left[w]]:
                x[self.unique[w]] = 0
            if x[self.slot[w]] >= GRANTED and not x[self.reserved[w]]:
                if x[self.round[w]]:
                    x[self.slot[w]] = OFFERED
                else:
                    self._free(x, w)
        return bytes(x)

    def _faults(self, s: State) -> Iterator[Step]:
        faults = self.world.faults
        if "pause" in faults:
            for a in self.senders:
                yield Step(Action("pause", a), self._tick(s, a), "")
        if "restart-sender" in faults:
            for a in self.senders:
                x = bytearray(s)
                for f in self.flows_of[a]:
                    self._forget_pending(x, f)
                    self._drop_entry(x, f)
                for w in self.wires_of[a]:
                    x[self.unique[w]] = x[self.unique_left[w]] = 0
                x[self.sender_hold[a]] = self.t_sender_hold
                yield Step(Action("restart-sender", a), bytes(x), "")
        if "restart-receiver" in faults:
            for r in self.receivers:
                if r == self.liar:
                    continue
                x = bytearray(s)
                for w in self.wires:
                    if self.receiver_of[w] == r:
                        self._free(x, w)
                x[self.hold[r]] = self.t_hold
                yield Step(Action("restart-receiver", r), bytes(x), "")
        if "flush" in faults:
            for w in self.wires:
                if s[self.slot[w]] == GRANTED:
                    x = bytearray(s)
                    self._close_round(x, w)
                    if self.r_flush_reservation:
                        x[self.slot[w]] = DEAD
                    else:
                        self._free(x, w)
                    yield Step(Action("flush", w), bytes(x), "")
        if "drop" in faults:
            for f in self.flows:
                if s[self.entry[f]]:
                    x = bytearray(s)
                    self._drop_entry(x, f)
                    yield Step(Action("drop", f), bytes(x), "")
        if "late-rewriter" in faults and not s[self.late[0]]:
            x = bytearray(s)
            x[self.late[0]] = 1
            yield Step(Action("late-rewriter"), bytes(x), "")

    def _fallback(self, s: State) -> Iterator[Step]:
        """A fallback packet of f reaches a receiver, which answers with OFFER."""
        for f in self.flows:
            flow = self.world.flows[f]
            for r in flow.routes:
                if r == self.liar or s[self.hold[r]] or (self.r_ownership and flow.owner != r):
                    continue
                wires = [w for w in self.wires_of[flow.sender] if self.receiver_of[w] == r]
                again = False
                for w in wires:
                    if s[self.slot_flow[w]] == f + 1 and s[self.slot[w]] != DEAD:
                        again = True
                        x = bytearray(s)
                        self._close_round(x, w)
                        x[self.round[w]] = OPEN
                        yield Step(Action("offer-again", f, w), bytes(x), "")
                if again and "forget" not in self.world.faults:
                    continue
                for w in wires:
                    # An OFFER that nobody has answered binds the receiver to nothing.
                    if s[self.slot_flow[w]] != f + 1 and (
                        s[self.slot[w]] <= OFFERED or not self.r_reservation
                    ):
                        x = bytearray(s)
                        self._free(x, w)
                        x[self.slot_flow[w]] = f + 1
                        x[self.slot[w]] = OFFERED
                        x[self.round[w]] = OPEN
                        yield Step(Action("offer", f, w), bytes(x), "")

    def _refuses_offer(self, s: State, f: int, w: int) -> bool:
        """The sender's checks of an OFFER, but for path and nonces."""
        return bool(
            s[self.sender_hold[self.sender_of[w]]]
            or (self.r_solicit and self.receiver_of[w] not in self.world.flows[f].routes)
            or (self.r_unique and s[self.unique[w]] not in (0, f + 1))
        )

    def _stand_for(self, x: bytearray, f: int, w: int, time: int) -> None:
        """The sender notes that a key stands for a flow for some time."""
        if self.r_unique:
            if self.r_longest:
                time = max(time, x[self.unique_left[w]])
            x[self.unique[w]] = f + 1
            x[self.unique_left[w]] = time

    def _offers(self, s: State) -> Iterator[Step]:
        """An OFFER of a key for f reaches the sender: the latest one, an old or a forged one."""
        path_ok = not self.r_path or self._now(self.world.path_back, s) == INTACT
        for w in self.wires:
            for f in self.flows_of[self.sender_of[w]]:
                if self._refuses_offer(s, f, w):
                    continue
                lies = self.receiver_of[w] == self.liar
                latest = s[self.slot_flow[w]] == f + 1 and s[self.round[w]] != CLOSED and path_ok
                good = latest or lies or not self.r_nonces
                x = bytearray(s)
                self._stand_for(x, f, w, self.t_unique)
                if s[self.pending[f]] == w + 1 and path_ok and not lies:
                    yield Step(Action("accept-again", f, w), bytes(x), "")
                self._forget_pending(x, f)
                yield Step(Action("accept-old", f, w), bytes(x), "")
                if good:
                    x[self.pending[f]] = w + 1
                    x[self.pending_due[f]] = self.world.lease
                    x[self.confirmed[f]] = lies
                    if not self.r_nonces:
                        x[(self.old_confirm if lies else self.old_accept)[w * len(self.flows) + f]] = 1
                    if latest or lies:
                        yield Step(Action("accept", f, w), bytes(x), "")
                    if not self.r_nonces:
                        yield Step(Action("accept-stray", f, w), bytes(x), "")
                if self.world.short_leases:
                    x = bytearray(s)
                    self._stand_for(x, f, w, 1 + self.world.guard)
                    self._forget_pending(x, f)
                    yield Step(Action("accept-short", f, w), bytes(x), "")

    def _accepts(self, s: State) -> Iterator[Step]:
        """An ACCEPT reaches the receiver, which grants the key and answers with CONFIRM."""
        if self.r_path and self._now(self.world.path_there, s) != INTACT:
            return
        if not self.r_nonces:
            for w in self.wires:
                f = s[self.slot_flow[w]] - 1
                i = w * len(self.flows) + f
                if f >= 0 and s[self.slot[w]] != DEAD and s[self.old_accept[i]]:
                    x = bytearray(s)
                    self._grant(x, w)
                    x[self.old_confirm[i]] = 1
                    yield Step(Action("confirm", f, w), bytes(x), "")
            return
        for f in self.flows:
            w = s[self.pending[f]] - 1
            if w >= 0 and not s[self.confirmed[f]]:
                x = bytearray(s)
                x[self.confirmed[f]] = 1
                self._grant(x, w)
                yield Step(Action("confirm", f, w), bytes(x), "")
        for w in self.wires:
            if s[self.round[w]] == ORPHANED:
                x = bytearray(s)
                self._grant(x, w)
                yield Step(Action("confirm-old", s[self.slot_flow[w]] - 1, w), bytes(x), "")

    def _confirms(self, s: State) -> Iterator[Step]:
        """A CONFIRM reaches the sender: from now on the flow is encoded."""
        for f in self.flows:
            w = s[self.pending[f]] - 1
            if w < 0:
                continue
            if not (s[self.confirmed[f]] or s[self.old_confirm[w * len(self.flows) + f]]):
                continue
            if (
                self.r_path
                and self.receiver_of[w] != self.liar
                and self._now(self.world.path_back, s) != INTACT
            ):
                continue
            x = bytearray(s)
            x[self.entry[f]] = w + 1
            x[self.due[f]] = s[self.pending_due[f]]
            x[self.lease_left[f]] = s[self.pending_due[f]] if self.r_lease_start else self.world.lease
            if not self.r_lease:
                x[self.lease_left[f]] = 1
            x[self.pending[f]] = x[self.confirmed[f]] = x[self.pending_due[f]] = 0
            yield Step(Action("renew" if s[self.entry[f]] == w + 1 else "install", f, w), bytes(x), "")

    def _encode(self, s: State) -> Iterator[Step]:
        for f in self.flows:
            w = s[self.entry[f]] - 1
            if w >= 0:
                x = bytearray(s)
                x[self.encoded[w * len(self.flows) + f]] = self.world.guard + 1
                broken = "" if s[self.due[f]] else "I2: the sender uses the key after t(ACCEPT) + lease"
                yield Step(Action("encode", f, w), bytes(x), broken)

    def _arrive(self, s: State) -> Iterator[Step]:
        """An encoded packet reaches its receiver, which decodes or bounces it."""
        path = self._now(self.world.path_there, s)
        n = len(self.flows)
        for i in range(len(self.encoded)):
            left = s[self.encoded[i]]
            if not left:
                continue
            w, f = divmod(i, n)
            r = self.receiver_of[w]
            if path == BLEACHES:
                yield Step(Action("unmarked", f, w), s, "I6: the path takes MARK off an encoded packet")
                continue
            if r == self.liar:
                yield Step(Action("taken", f, w), s, f"I1: {self.node(r)} gets a flow that is not its own")
                continue
            if path == REWRITES:
                w = self.swapped[w]
            if s[self.slot[w]] == GRANTED:
                g = s[self.slot_flow[w]] - 1
                broken = ""
                if g != f:
                    broken = f"I1: a packet of {self.flow(f)} is decoded as {self.flow(g)}"
                elif self.world.flows[f].owner != r:
                    broken = f"I1: {self.node(r)} decodes a flow that is not its own"
                yield Step(Action("decode", f, w), s, broken)
            else:
                x = bytearray(s)
                j = self.bounced[w * n + f]
                x[j] = max(x[j], self.world.guard + 1 if self.world.fresh_guard_for_bounce else left)
                yield Step(Action("bounce", f, w), bytes(x), "")

    def _return(self, s: State) -> Iterator[Step]:
        """A bounced packet reaches its sender, which restores it by the key and drops the entry."""
        path = self._now(self.world.path_back, s)
        n = len(self.flows)
        if path == BLEACHES:
            return
        for i in range(len(self.bounced)):
            if not s[self.bounced[i]]:
                continue
            w, f = divmod(i, n)
            if path == REWRITES:
                w = self.swapped[w]
            if self.r_unique:
                holders = [s[self.unique[w]] - 1] if s[self.unique[w]] else []
            else:
                holders = [g for g in self.flows if s[self.entry[g]] == w + 1]
            for g in holders:
                x = bytearray(s)
                if s[self.entry[g]] == w + 1:
                    self._drop_entry(x, g)
                broken = ""
                if g != f:
                    broken = f"I1: a bounced packet of {self.flow(f)} is restored as {self.flow(g)}"
                yield Step(Action("restore", f, w), bytes(x), broken)

    def steps(self, s: State) -> Iterator[Step]:
        """All that may happen next."""
        yield Step(Action("tick"), self._tick(s), "")
        yield from self._fallback(s)
        yield from self._offers(s)
        yield from self._accepts(s)
        yield from self._confirms(s)
        yield from self._encode(s)
        yield from self._arrive(s)
        yield from self._return(s)
        yield from self._faults(s)

    def check(self, s: State) -> str:
        """I2 of the receiver: which property the state breaks, or nothing."""
        n = len(self.flows)
        for w in self.wires:
            if s[self.slot[w]] not in (OFFERED, GRANTED):
                continue
            g = s[self.slot_flow[w]] - 1
            for f in self.flows_of[self.sender_of[w]]:
                if f != g and (
                    s[self.entry[f]] == w + 1
                    or s[self.encoded[w * n + f]]
                    or (s[self.pending[f]] == w + 1 and s[self.confirmed[f]])
                ):
                    given = "granted" if s[self.slot[w]] == GRANTED else "offered"
                    return f"I2: a key is {given} to {self.flow(g)} while {self.flow(f)} may use it"
        return ""

    # Names, for people.

    def flow(self, f: int) -> str:
        """Its name."""
        return "fghijk"[f]

    def sender(self, a: int) -> str:
        """Its name."""
        return f"A{a + 1}" if len(self.senders) > 1 else "A"

    def node(self, r: int) -> str:
        """A receiver's name."""
        return self.world.receivers[r]

    def describe(self, action: Action) -> str:
        """The action in words."""
        verb, a, b = action
        if verb in _OF_NOBODY:
            return _OF_NOBODY[verb]
        if verb in _OF_SENDER:
            return _OF_SENDER[verb].format(A=self.sender(a))
        if verb in _OF_RECEIVER:
            return _OF_RECEIVER[verb].format(B=self.node(a))
        if verb in _OF_FLOW:
            return _OF_FLOW[verb].format(A=self.sender(self.world.flows[a].sender), f=self.flow(a))
        w = a if verb in _OF_WIRE else b
        return (_OF_WIRE | _OF_FLOW_AND_WIRE)[verb].format(
            A=self.sender(self.sender_of[w]),
            B=self.node(self.receiver_of[w]),
            f=self.flow(a),
            key=f"key {1 + w % self.world.keys}",
        )


_OF_NOBODY = {
    "tick": "a tick passes",
    "late-rewriter": "a middlebox begins to rewrite keys, both ways",
}
_OF_SENDER = {
    "pause": "a tick passes, but {A}'s clock stands still",
    "restart-sender": "{A}'s datapath is re-created, empty",
}
_OF_RECEIVER = {"restart-receiver": "{B}'s datapath is re-created, empty"}
_OF_FLOW = {"drop": "{A} drops its entry of {f}"}
_OF_WIRE = {"flush": "{B} drops {key} of {A}"}
_OF_FLOW_AND_WIRE = {
    "offer": "a fallback packet of {f} reaches {B}, which sends an OFFER of {key} to {A}",
    "offer-again": "a fallback packet of {f} reaches {B}, which sends a new OFFER of the same {key} to {A}",
    "accept": "an OFFER of {B}'s {key} for {f} reaches {A}, which sends an ACCEPT",
    "accept-again": "the same OFFER of {B}'s {key} for {f} reaches {A}, which repeats its ACCEPT",
    "accept-stray": "an old or forged OFFER of {B}'s {key} for {f} reaches {A}, which cannot tell and "
    "sends an ACCEPT",
    "accept-old": "an old or forged OFFER of {B}'s {key} for {f} reaches {A}, which sends an ACCEPT",
    "accept-short": "a forged OFFER of {B}'s {key} for {f}, with a short lease, reaches {A}, which sends an "
    "ACCEPT",
    "confirm": "an ACCEPT of {key} for {f} reaches {B}, which grants it and sends a CONFIRM",
    "confirm-old": "an ACCEPT of {key} for {f} that {A} has forgotten reaches {B}, which grants it",
    "install": "a CONFIRM of {B}'s {key} for {f} reaches {A}, which encodes {f} from now on",
    "renew": "a CONFIRM of {B}'s {key} for {f} reaches {A}, which has its lease renewed",
    "encode": "{A} encodes a packet of {f} with {B}'s {key}",
    "decode": "an encoded packet of {f} reaches {B} with {key}, which decodes it",
    "bounce": "an encoded packet of {f} reaches {B} with {key}, which bounces it",
    "taken": "an encoded packet of {f} reaches {B}",
    "unmarked": "an encoded packet of {f} reaches {B} without MARK",
    "restore": "a bounced packet of {f} reaches {A} with {key} of {B}, which restores it",
}
