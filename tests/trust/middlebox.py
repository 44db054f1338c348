# SPDX-License-Identifier: Apache-2.0
"""A middlebox between a host and the fabric, which drops, doubles, delays and rewrites packets.

::

    with Middlebox(host) as box:
        box.rules(Rule("duplicate", percent=30), Rule("delay", only=("confirm",), low=3.2, high=3.5))
        ...
        box.counts()

It is a process with a packet socket on either side, good for some thousand packets a second. The
host's offloads are switched off, so that each frame is one real packet with complete checksums.
nftables rules on the host's port do not see packets from the host while a middlebox is there.

`python -m tests.trust.middlebox NEAR FAR` is that process: it takes lists of rules as lines of JSON.
"""

from __future__ import annotations

import heapq
import json
import random
import select
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tests.lab import Host, LabError
from tests.lab.fabric import Direction
from xmasq_link._wire import ACCEPT, BOUNCE, CONFIRM, MARK, OFFER, PORT, VXLAN_FLAG_I

Action = Literal["drop", "duplicate", "delay", "rewrite-id", "bleach"]
#: What a packet can be to xmasq with its default settings; "other" is what is none of its business.
Kind = Literal["offer", "accept", "confirm", "fallback", "encoded", "bounced", "other"]
CONTROL: tuple[Kind, ...] = ("offer", "accept", "confirm")

_ETH, _IP, _UDP = 14, 20, 8
_VXLAN = _ETH + _IP + _UDP
_IGNORE_OUTGOING = 23  # PACKET_IGNORE_OUTGOING, linux/if_packet.h
_ETH_P_ALL = 3
_QUEUE_MAX = 50_000
_CONTROL: dict[int, Kind] = {OFFER: "offer", ACCEPT: "accept", CONFIRM: "confirm"}


@dataclass(frozen=True)
class Rule:
    """What happens to ``percent`` of the packets, each by chance. Rules work one after the other.

    ``only``: kinds of packets, all by default. ``direction`` is as the host sees it. ``low`` and
    ``high``: a delayed packet, or a duplicate, comes so many seconds after the packet came in, evenly
    spread. A duplicate does not share the delay of the original, so ``high`` bounds the age of both.
    """

    action: Action
    percent: float = 100
    only: tuple[Kind, ...] = ()
    direction: Direction = "both"
    low: float = 0.0
    high: float = 0.0


class Middlebox:
    """Stands between a host's ``eth0`` and the fabric until it is closed, or the lab is."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.fabric = host.lab.fabric
        self.port = self.fabric.port(host).name
        near, far = f"mb{host.number}", f"mf{host.number}"
        host.offloads(tx=False, gso=False, tso=False, gro=False)
        self.fabric.ip(
            f"link add {near} mtu {host.mtu} type veth peer name {far} mtu {host.mtu}",
            f"link set {far} master br0",
            f"link set {near} up",
            f"link set {far} up",
        )
        for name in (near, far):
            self.fabric.run(["ethtool", "-K", name, "tx", "off", "gso", "off", "tso", "off"])
        self._child = self.fabric.popen(
            [sys.executable, "-m", "tests.trust.middlebox", self.port, near],
            stdin=subprocess.PIPE,
            stderr=None,
        )
        self._near = near
        self.counts()
        self.fabric.ip(f"link set {self.port} nomaster")
        self.rules()

    def __enter__(self) -> Middlebox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes the middlebox away; the host is joined to the fabric as before, offloads stay off."""
        if self._child.stdin is None or self._child.stdin.closed:
            return
        self.fabric.ip(f"link set {self.port} master br0", f"link del {self._near}")
        self.fabric.lab.kill(self._child)

    def rules(self, *rules: Rule) -> None:
        """These rules from now on, instead of those before. Counts start anew."""
        self._ask([asdict(rule) for rule in rules])

    def counts(self) -> list[int]:
        """To how many packets each rule was applied."""
        counts: list[int] = self._ask(None)
        return counts

    def _ask(self, question: Any) -> Any:
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(question) + "\n")
        child.stdin.flush()
        if not select.select([child.stdout], [], [], 10)[0]:
            raise LabError(f"the middlebox of {self.host.name} does not answer")
        line = child.stdout.readline()
        if not line:
            raise LabError(f"the middlebox of {self.host.name} has ended")
        return json.loads(line)


def kind_of(frame: bytes | bytearray) -> Kind:
    """What a frame is to xmasq with default settings, by its outer headers alone."""
    if len(frame) < _ETH + _IP or frame[12:14] != b"\x08\x00" or frame[_ETH] != 0x45:
        return "other"
    dscp = frame[_ETH + 1] >> 2
    udp = frame[_ETH + 9] == socket.IPPROTO_UDP and not frame[_ETH + 6] & 0x1F and not frame[_ETH + 7]
    if udp and len(frame) >= _VXLAN + 10 and int.from_bytes(frame[_ETH + _IP + 2 : _ETH + _IP + 4]) == PORT:
        if frame[_VXLAN] & VXLAN_FLAG_I:
            return "fallback"
        return _CONTROL.get(frame[_VXLAN + 9], "other") if dscp == MARK else "other"
    return "encoded" if dscp == MARK else "bounced" if dscp == BOUNCE else "other"


def set_header(frame: bytearray, *, dscp: int | None = None, ident: int | None = None) -> None:
    """Changes an IPv4 header's DSCP or Identification, and its checksum (RFC 1624)."""
    before = bytes(frame[_ETH : _ETH + 6])
    if dscp is not None:
        frame[_ETH + 1] = dscp << 2 | frame[_ETH + 1] & 3
    if ident is not None:
        frame[_ETH + 4 : _ETH + 6] = ident.to_bytes(2)
    total = int.from_bytes(frame[_ETH + 10 : _ETH + 12]) ^ 0xFFFF
    for i in range(0, 6, 2):
        total += (int.from_bytes(before[i : i + 2]) ^ 0xFFFF) + int.from_bytes(frame[_ETH + i : _ETH + i + 2])
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    frame[_ETH + 10 : _ETH + 12] = (total ^ 0xFFFF).to_bytes(2)


class _Forwarder:
    def __init__(self, near: str, far: str) -> None:
        self.sides = [self._socket(near), self._socket(far)]
        self.rules: list[dict[str, Any]] | None = None  # until the first ones come, nothing passes
        self.counts: list[int] = []
        self.queue: list[tuple[float, int, int, bytes]] = []
        self.number = 0

    @staticmethod
    def _socket(name: str) -> socket.socket:
        one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        one.setsockopt(263, _IGNORE_OUTGOING, 1)  # SOL_PACKET
        one.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
        one.bind((name, _ETH_P_ALL))
        one.setblocking(False)
        return one

    def work(self) -> None:
        poll = select.epoll()
        for side in self.sides:
            poll.register(side, select.EPOLLIN)
        poll.register(sys.stdin, select.EPOLLIN)
        numbers = {side.fileno(): at for at, side in enumerate(self.sides)}
        while True:
            now = time.monotonic()
            while self.queue and self.queue[0][0] <= now:
                _, _, side, frame = heapq.heappop(self.queue)
                self._send(side, frame)
            timeout = max(0.0, self.queue[0][0] - now) if self.queue else -1
            for fd, _ in poll.poll(timeout):
                if fd in numbers:
                    self._take(numbers[fd])
                elif not self._command():
                    return

    def _command(self) -> bool:
        line = sys.stdin.readline()
        if not line:
            return False
        rules = json.loads(line)
        if rules is None:
            print(json.dumps(self.counts), flush=True)
            return True
        self.rules = rules
        self.counts = [0] * len(rules)
        print("[]", flush=True)
        return True

    def _take(self, side: int) -> None:
        for _ in range(64):
            try:
                frame = self.sides[side].recv(65535)
            except OSError:
                return  # nothing more, or a device that goes
            self._pass_on(frame, side)

    def _pass_on(self, frame: bytes, side: int) -> None:
        if self.rules is None:
            return
        delay, copies = 0.0, list[float]()
        kind = ""
        for at, rule in enumerate(self.rules):
            if rule["direction"] != "both" and (rule["direction"] == "to") != (side == 1):
                continue
            if rule["only"]:
                kind = kind or kind_of(frame)
                if kind not in rule["only"]:
                    continue
            if rule["percent"] < 100 and random.random() * 100 >= rule["percent"]:
                continue
            if rule["action"] in ("bleach", "rewrite-id"):
                if frame[12:14] != b"\x08\x00":
                    continue
                changed = bytearray(frame)
                if rule["action"] == "bleach":
                    set_header(changed, dscp=0)
                else:
                    set_header(changed, ident=random.getrandbits(16))
                frame = bytes(changed)
            self.counts[at] += 1
            if rule["action"] == "drop":
                return
            if rule["action"] == "delay":
                delay += random.uniform(rule["low"], rule["high"])
            elif rule["action"] == "duplicate":
                copies.append(random.uniform(rule["low"], rule["high"]))
        for late in (delay, *copies):
            if late:
                self.number += 1
                due = time.monotonic() + late
                if len(self.queue) < _QUEUE_MAX:
                    heapq.heappush(self.queue, (due, self.number, 1 - side, frame))
            else:
                self._send(1 - side, frame)

    def _send(self, side: int, frame: bytes) -> None:
        try:
            self.sides[side].send(frame)
        except OSError as e:
            print(f"middlebox: a frame of {len(frame)} bytes was not sent: {e}", file=sys.stderr)


def main() -> int:
    """See above."""
    _Forwarder(*sys.argv[1:3]).work()
    return 0


if __name__ == "__main__":
    sys.exit(main())
