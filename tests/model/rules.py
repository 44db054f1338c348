# SPDX-License-Identifier: Apache-2.0
"""The rules of the negotiation, each of which can be taken out, and the worlds they are tried in."""

from __future__ import annotations

from dataclasses import dataclass

# Names are as on the command line. The design's section 5 and kmod_ebpf/src hold the rules themselves.
RULES = {
    "lease": "the sender stops using a key when its lease ends",
    "lease-start": "the lease counts from the sender's own ACCEPT, not from CONFIRM's arrival",
    "reservation": "the receiver gives a key to another flow only lease + guard after its last CONFIRM",
    "flush-reservation": "a flushed key stays reserved as long as if it had not been flushed",
    "hold-down": "a re-created receiver gives no key until lease + guard after its start",
    "solicit": "the sender takes an OFFER only from a peer to which it sends the flow's fallback",
    "ownership": "the receiver offers only for flows to containers of its own",
    "path": "MARK and key must have arrived intact in OFFER, ACCEPT and CONFIRM",
    "nonces": "ACCEPT answers one OFFER, CONFIRM answers one ACCEPT, each once",
    "sender-unique": "the sender takes no OFFER of a key that stands for another flow, until lease + guard "
    "after its last ACCEPT of that key",
    "sender-longest": "an ACCEPT with a shorter lease does not shorten that time",
    "sender-hold": "a re-created sender takes no key until guard after its start",
}
SENDER_RULES = frozenset({"sender-unique", "sender-longest", "sender-hold"})
ALL = frozenset(RULES)
# Without the second line of defence: the rules of the sender.
PLAIN = ALL - SENDER_RULES

# What a path does to every packet on it.
INTACT, REWRITES, BLEACHES = "intact", "rewrites keys", "bleaches MARK"

RESTARTS = frozenset({"restart-sender", "restart-receiver"})
FAULTS = {
    "restart-sender": "the datapath of a sender may be re-created, empty, at any step",
    "restart-receiver": "the datapath of a receiver may be re-created, empty, at any step",
    "flush": "a receiver may drop any key at any step",
    "drop": "a sender may drop any entry at any step (flush, eviction, forged BOUNCE)",
    "forget": "a receiver may forget which key a flow has (eviction), and offer one more",
    "pause": "the clock of a sender may stand still while time passes (a paused virtual machine)",
    "late-rewriter": "a path that was intact may begin to rewrite keys at any step",
}


@dataclass(frozen=True)
class Flow:
    """A flow: its sender, the receiver that owns its destination, and where its fallback goes.

    Senders and receivers are numbered. More than one place to go to is flooding.
    """

    sender: int = 0
    owner: int = 0
    routes: tuple[int, ...] = (0,)


F, F2 = Flow(), Flow(sender=1)
FLOODED = Flow(routes=(0, 1))


@dataclass(frozen=True)
class World:
    """A small network to explore. lease and guard are in ticks; keys is per ordered VTEP pair."""

    name: str
    flows: tuple[Flow, ...] = (F, F)
    receivers: str = "B"
    liar: str = ""  # one of the receivers that follows no rule
    keys: int = 1
    lease: int = 2
    guard: int = 1
    faults: frozenset[str] = RESTARTS | {"flush"}
    path_there: str = INTACT
    path_back: str = INTACT
    short_leases: bool = False  # a forged OFFER may carry a lease of one tick
    fresh_guard_for_bounce: bool = False  # the guard bounds each direction, not there and back
    # Mutations: by how many ticks a time is too short.
    short_reservation: int = 0
    short_hold_down: int = 0
    short_unique: int = 0
    short_sender_hold: int = 0

    @property
    def senders(self) -> int:
        """How many there are."""
        return 1 + max(f.sender for f in self.flows)


# Where the rules have to hold, I1 and I2, with and without the sender's own.
SAFE = (
    (World("one key", faults=frozenset(FAULTS) - {"pause", "late-rewriter"}, short_leases=True), ALL),
    (World("one key", faults=frozenset(FAULTS) - {"pause", "late-rewriter"}, short_leases=True), PLAIN),
    (World("one key, long guard", lease=3, guard=3), ALL),
    (World("one key, finer time", lease=6, guard=3), ALL),
    (World("three flows", flows=(F, F, F), faults=RESTARTS), ALL),
    (World("two keys", keys=2, lease=1, faults=RESTARTS | {"flush", "forget"}), ALL),
    (World("two senders", flows=(F, F, F2, F2), lease=1, faults=RESTARTS), ALL),
    (World("flooding, and a liar", flows=(FLOODED, F), receivers="BCM", liar="M", lease=1), ALL),
)
LARGE = (
    (World("one key, finest time", lease=10, guard=5), ALL),
    (World("two keys, longer lease", keys=2), ALL),
    (World("two keys, longer lease", keys=2, lease=3, faults=RESTARTS | {"flush", "forget"}), PLAIN),
    (World("two senders, flush", flows=(F, F, F2, F2), lease=1), ALL),
    (World("two senders, longer lease", flows=(F, F, F2, F2), faults=RESTARTS), ALL),
)
# A middlebox from the start on: nothing must ever be encoded.
PATHS = {
    "rewriter there": World("rewriter there", keys=2, path_there=REWRITES),
    "rewriter back": World("rewriter back", keys=2, path_back=REWRITES),
    "bleacher there": World("bleacher there", keys=2, path_there=BLEACHES),
    "bleacher back": World("bleacher back", keys=2, path_back=BLEACHES),
}
# I1 holds here only with the sender's own rules, and the receiver's half of I2 does not.
PAUSE = World("paused sender", faults=RESTARTS | {"flush", "pause"})
# What the rules do not cover. I1 is broken here; docs/model.md says why, and what follows.
NARROW = World("guard for one way only", faults=frozenset({"flush"}), fresh_guard_for_bounce=True)
LIMITS = {
    "late-rewriter": (World("late rewriter", keys=2, faults=frozenset({"late-rewriter"})), ALL),
    "flooded-liar": (World("liar that gets flooded frames", (FLOODED,), "BM", "M", faults=frozenset()), ALL),
    "narrow-guard": (NARROW, ALL),
    "both-replaced": (World("both ends replaced", faults=RESTARTS), ALL - {"hold-down", "sender-hold"}),
}
# The world in which leaving out a rule shows soonest.
TELLING = {
    "lease": World("no fault but the network's", faults=frozenset()),
    "lease-start": World("no fault but the network's", faults=frozenset()),
    "reservation": World("no fault but the network's", faults=frozenset()),
    "flush-reservation": World("flush", faults=frozenset({"flush"})),
    "hold-down": World("receiver restarts", faults=frozenset({"restart-receiver"})),
    "solicit": World("a liar", (F,), "BM", "M", faults=frozenset()),
    "ownership": World("flooding", (FLOODED,), "BC", faults=frozenset()),
    "path": PATHS["rewriter there"],
    "nonces": World("no fault but the network's", faults=frozenset()),
    "sender-unique": PAUSE,
    "sender-longest": World("short leases", faults=frozenset({"flush"}), short_leases=True),
    "sender-hold": World("sender restarts", faults=frozenset({"restart-sender", "flush"})),
}


def without(rule: str, *, sender_rules: bool = False) -> frozenset[str]:
    """All rules but one. The sender's own count only if asked for, or if it is one of them."""
    return (ALL if sender_rules or rule in SENDER_RULES else PLAIN) - {rule}
