# SPDX-License-Identifier: Apache-2.0
"""Child process of the tagged-traffic checker: sends, receives and judges the datagrams.

`python -m tests.trust.generator` reads one line of JSON (made by tests.trust.tagged) and commands
from standard input: "start", "stop". It answers "ready" and, after "stop" or when its time
is up, one line of JSON with what it saw. One process serves all containers: a socket stays in the
network namespace in which it was made.
"""

from __future__ import annotations

import ctypes
import errno
import heapq
import json
import os
import random
import select
import socket
import struct
import sys
import time
from array import array
from typing import Any

#: Run, destination, flow, number within the flow, VNI, source, padding's length. The first two words
#: stand where the packet socket's filter looks for them.
TAG = struct.Struct("!IIIIIIH")

_CLONE_NEWNET = 0x40000000
_ETH_P = {4: 0x0800, 6: 0x86DD}
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_IP_MTU_DISCOVER, _PMTUDISC_DONT, _PMTUDISC_PROBE = 10, 0, 3
_IP_PKTINFO, _IP_RECVTOS = 8, 13
_IPV6_MTU_DISCOVER, _IPV6_HDR_LEN = 23, 40
_PADDING = bytes(range(256)) * 8
_RCVBUF = 1 << 25
_MISSING = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EINVAL, errno.EADDRNOTAVAIL)
_FULL = (errno.EAGAIN, errno.ENOBUFS)

_libc = ctypes.CDLL(None, use_errno=True)


def enter(path: str) -> None:
    """This process works in another network namespace from now on."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {path}")
    finally:
        os.close(fd)


def _stray_filter(family: int, run: int, container: int) -> bytes:
    """A classic BPF program: UDP to this host that bears a tag of this run for another container."""
    lines = [
        (0x28, 0, 0, 0xFFFFF004),  # ldh pkttype
        (0x15, 0, 8, 0),  # to this host, or drop
        (0x30, 0, 0, 9 if family == 4 else 6),  # ldb protocol
        (0x15, 0, 6, 17),
        (0xB1, 0, 0, 0) if family == 4 else (0x01, 0, 0, _IPV6_HDR_LEN),  # ldx 4 * IHL, or its length
        (0x40, 0, 0, 8),  # ld the tag's first word
        (0x15, 0, 3, run),
        (0x40, 0, 0, 12),  # ld destination
        (0x15, 1, 0, container),
        (0x06, 0, 0, 0xFFFF),  # take it
        (0x06, 0, 0, 0),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _stray_socket(family: int, run: int, container: int) -> socket.socket:
    # On no device: the container's may go and come. What comes before the filter bears no tag of this run.
    one = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P[family]))
    code = ctypes.create_string_buffer(_stray_filter(family, run, container))
    program = struct.pack("@HP", (len(code) - 1) // 8, ctypes.addressof(code))
    one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    return one


def _listener(family: int, port: int) -> socket.socket:
    one = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    one.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RCVBUF)
    if family == 4:
        one.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        one.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
    else:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    one.bind(("", port))
    return one


def _sender(family: int, address: str, *, df: bool, tos: int) -> socket.socket:
    one = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    discover = _PMTUDISC_PROBE if df else _PMTUDISC_DONT
    if family == 4:
        one.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, discover)
        one.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
    else:
        one.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, discover)
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos)
    one.bind((address, 0))
    one.setblocking(False)
    return one


def _described(control: list[Any]) -> tuple[int, str]:
    """The TOS or traffic class of a datagram, and the address that it was sent to."""
    tos, target = -1, ""
    for level, kind, value in control:
        match level, kind:
            case socket.IPPROTO_IP, socket.IP_TOS:
                tos = value[0]
            case socket.IPPROTO_IP, int(x) if x == _IP_PKTINFO:
                target = socket.inet_ntoa(value[8:12])
            case socket.IPPROTO_IPV6, socket.IPV6_TCLASS:
                tos = int.from_bytes(value[:4], sys.byteorder)
            case socket.IPPROTO_IPV6, socket.IPV6_PKTINFO:
                target = socket.inet_ntop(socket.AF_INET6, value[:16])
    return tos, target


class _Flow:
    """One flow's sending side, and what came of it."""

    def __init__(self, number: int, spec: dict[str, Any], rng: random.Random) -> None:
        self.number = number
        self.src: int = spec["src"]
        self.dst: int = spec["dst"]
        self.source: str = spec["source"]
        self.target: str = spec["target"]
        self.port: int = spec["port"]
        self.df: bool = spec["df"]
        self.tos: int = spec["tos"]
        self.vni: int = spec["vni"]
        self.sizes: list[int] = spec["sizes"]
        self.interval: float = spec["interval"]
        self.burst: int = spec["burst"]
        self.gaps: list[float] = spec["gaps"]
        self.left = self.burst
        self.rng = rng
        self.sport = 0
        self.socket: socket.socket | None = None
        self.sent_at = array("d")
        self.seen = bytearray()
        self.last = -1
        self.delivered = self.duplicated = self.reordered = self.refused = 0

    def wait(self) -> float:
        """Seconds until the next datagram: evenly spread by chance, with idle gaps between bursts."""
        pause = self.interval * self.rng.uniform(0.5, 1.5)
        if self.gaps:
            self.left -= 1
            if self.left <= 0:
                self.left = self.burst
                pause += self.rng.choice(self.gaps)
        return pause


class Generator:
    """Sends by schedule, receives at once, and judges each datagram by its own tag."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.run: int = config["run"]
        self.family: int = config["family"]
        self.seconds: float = config["seconds"]
        self.count: int = config["count"]
        self.drain: float = config["drain"]
        self.containers: list[dict[str, Any]] = config["containers"]
        self.rng = random.Random(config["seed"])
        self.flows = [_Flow(i, spec, self.rng) for i, spec in enumerate(config["flows"])]
        self.poll = select.epoll()
        self.readers: dict[int, tuple[socket.socket, int, str]] = {}
        self.senders: list[socket.socket] = []
        self.astray: dict[tuple[int, int, str], tuple[float, str]] = {}
        self.at_host: list[tuple[float, int]] = []
        self.corrupt = 0
        self.sent = 0
        home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        for number, container in enumerate(self.containers):
            enter(container["netns"])
            self._open(number, config["ports"])
        for host in config["hosts"]:
            enter(host)
            for port in config["ports"]:
                self._read(_listener(self.family, port), -1, host)
        _libc.setns(home, _CLONE_NEWNET)
        os.close(home)

    def _read(self, one: socket.socket, container: int, where: str) -> None:
        one.setblocking(False)
        self.readers[one.fileno()] = one, container, where
        self.poll.register(one.fileno(), select.EPOLLIN)

    def _open(self, number: int, ports: list[int]) -> None:
        """The sockets of one container; this process is inside."""
        name = self.containers[number]["name"]
        self._read(_stray_socket(self.family, self.run, number), -2, name)
        for port in ports:
            self._read(_listener(self.family, port), number, name)
        shared: dict[tuple[str, bool, int], socket.socket] = {}
        for flow in self.flows:
            if flow.src != number:
                continue
            key = flow.source, flow.df, flow.tos
            if key not in shared:
                shared[key] = _sender(self.family, flow.source, df=flow.df, tos=flow.tos)
                self.senders.append(shared[key])
            flow.socket = shared[key]
            flow.sport = shared[key].getsockname()[1]

    def _send(self, flow: _Flow) -> None:
        length = self.rng.choice(flow.sizes) - TAG.size
        number = len(flow.sent_at)
        tag = TAG.pack(self.run, flow.dst, flow.number, number, flow.vni, flow.src, length)
        start = number & 255
        assert flow.socket is not None
        now = time.monotonic()
        try:
            flow.socket.sendto(tag + _PADDING[start : start + length], (flow.target, flow.port))
        except OSError as e:
            if e.errno not in _MISSING + _FULL:
                raise
            flow.refused += 1  # it never left: not the network's doing
            return
        flow.sent_at.append(now)
        flow.seen.append(0)
        self.sent += 1

    def _take(self, one: socket.socket, container: int, where: str) -> None:
        for _ in range(64):
            try:
                data, control, _, sender = one.recvmsg(2048, 128)
            except OSError as e:
                if e.errno in (errno.EAGAIN, errno.ENETDOWN):
                    return
                raise
            if container == -2:
                header = (data[0] & 15) * 4 if self.family == 4 else _IPV6_HDR_LEN
                data = data[header + 8 :]
            self._judge(data, control, sender, container, where)

    def _judge(self, data: bytes, control: list[Any], sender: Any, container: int, where: str) -> None:
        if len(data) < TAG.size:
            self.corrupt += 1
            return
        run, dst, at, number, vni, src, length = TAG.unpack_from(data)
        if run != self.run:
            return  # an earlier run's, under way for long
        if at >= len(self.flows) or number >= len(self.flows[at].seen):
            self.corrupt += 1
            return
        flow = self.flows[at]
        start = number & 255
        if data[TAG.size :] != _PADDING[start : start + length]:
            self.corrupt += 1
        now = time.monotonic()
        if container == -1:
            self.at_host.append((now, flow.vni))
            return
        wrong = ""
        if container != dst or container != flow.dst or vni != self.containers[container]["vni"]:
            wrong = f"at {where}"
        else:
            tos, target = _described(control)
            if sender[:2] != (flow.source, flow.sport) or target != flow.target or src != flow.src:
                wrong = f"as if from {sender[0]}:{sender[1]} to {target}"
            elif tos != flow.tos:
                wrong = f"with TOS {tos:#x}"
        if wrong:
            if (at, number, where) not in self.astray:
                self.astray[at, number, where] = now, wrong
            return
        if flow.seen[number]:
            flow.duplicated += 1
            return
        flow.seen[number] = 1
        flow.delivered += 1
        if number < flow.last:
            flow.reordered += 1
        else:
            flow.last = number

    def work(self) -> None:
        """From "start" to "stop", and until what is under way has arrived."""
        begin = time.monotonic()
        # Not all at once: bursts begin spread over the longest gap.
        spread = [max(flow.interval, *flow.gaps, 0.0) for flow in self.flows]
        agenda = [(begin + self.rng.random() * spread[flow.number], flow.number) for flow in self.flows]
        heapq.heapify(agenda)
        end = begin + self.seconds
        self.poll.register(sys.stdin.fileno(), select.EPOLLIN)
        while (now := time.monotonic()) < end:
            batch = 0
            while agenda[0][0] <= now and batch < 32 and self.sent < self.count:
                due, number = agenda[0]
                self._send(self.flows[number])
                # A late one does not make up for lost time: the rate is bounded.
                heapq.heapreplace(agenda, (max(due, now - 0.1) + self.flows[number].wait(), number))
                batch += 1
            due = min(agenda[0][0], end) if self.sent < self.count else end
            if self._receive(0 if batch == 32 else max(0.0005, due - now)):
                break
        end = time.monotonic() + self.drain
        while (now := time.monotonic()) < end:
            if all(flow.delivered == len(flow.seen) for flow in self.flows):
                end = min(end, now + 0.05)  # a little for duplicates
            self._receive(0.01)

    def _receive(self, timeout: float) -> bool:
        """Takes what has come; True when told to stop."""
        stop = False
        for fd, _ in self.poll.poll(timeout):
            if fd == sys.stdin.fileno():
                stop = True
                self.poll.unregister(fd)
            else:
                self._take(*self.readers[fd])
        return stop

    def report(self) -> dict[str, Any]:
        """What tests.trust.tagged makes a Result of."""
        return {
            "flows": [
                {
                    "vni": flow.vni,
                    "sent": len(flow.seen),
                    "delivered": flow.delivered,
                    "duplicated": flow.duplicated,
                    "reordered": flow.reordered,
                    "refused": flow.refused,
                    "lost_at": [at for at, seen in zip(flow.sent_at, flow.seen, strict=True) if not seen],
                }
                for flow in self.flows
            ],
            "astray": [
                (at, self.flows[flow].vni, self.flows[flow].sent_at[number], f"{self._name(flow)} {wrong}")
                for (flow, number, _), (at, wrong) in self.astray.items()
            ],
            "at_host": self.at_host,
            "corrupt": self.corrupt,
        }

    def _name(self, number: int) -> str:
        flow = self.flows[number]
        return f"vni {flow.vni} {flow.source} > {flow.target}"


def main() -> int:
    """See above."""
    generator = Generator(json.loads(sys.stdin.readline()))
    print("ready", flush=True)
    if sys.stdin.readline().strip() == "start":
        generator.work()
    print(json.dumps(generator.report()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
