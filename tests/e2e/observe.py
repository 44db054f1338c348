# SPDX-License-Identifier: Apache-2.0
"""What the tests look at: packets on the underlay, a host's counters and flows, datagrams that arrive."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest

from kmod_ebpf import bpf
from tests.lab import Capture, Container, Host, Namespace, Overlay, patience
from xmasq_link import Flow, _hooks
from xmasq_link import flows as list_flows
from xmasq_link import links as list_links
from xmasq_link._hooks import has_tcx

T = TypeVar("T")

MARK, BOUNCE, PORT, SEGMENT_BITS = 3, 7, 4789, 6
ICMP, TCP, UDP = 1, 6, 17


def until(condition: Callable[[], T], what: str, *, timeout: float = 20.0) -> T:
    """Calls ``condition`` until what it returns is true, and returns that."""
    deadline = time.monotonic() + patience(timeout)
    while not (value := condition()):
        assert time.monotonic() < deadline, f"after {timeout:g} s still not so: {what}"
        time.sleep(0.01)
    return value


# The underlay. A parser of its own, so that nothing of what is tested judges itself; and scapy
# takes too long for thousands of packets.


@dataclass(frozen=True, slots=True)
class Seen:
    """An IPv4 packet of a capture; ``data`` is what was kept of it, from the IPv4 header on."""

    time: float
    data: bytes

    @property
    def tos(self) -> int:
        return self.data[1]

    @property
    def dscp(self) -> int:
        return self.data[1] >> 2

    @property
    def ecn(self) -> int:
        return self.data[1] & 3

    @property
    def length(self) -> int:
        return int.from_bytes(self.data[2:4], "big")

    @property
    def id(self) -> int:
        return int.from_bytes(self.data[4:6], "big")

    @property
    def flags(self) -> int:
        """Reserved bit 4, DF 2, MF 1."""
        return self.data[6] >> 5

    @property
    def offset(self) -> int:
        return int.from_bytes(self.data[6:8], "big") & 0x1FFF

    @property
    def ttl(self) -> int:
        return self.data[8]

    @property
    def protocol(self) -> int:
        return self.data[9]

    @property
    def source(self) -> str:
        return socket.inet_ntoa(self.data[12:16])

    @property
    def destination(self) -> str:
        return socket.inet_ntoa(self.data[16:20])

    @property
    def payload(self) -> bytes:
        return self.data[20:]

    @property
    def kind(self) -> str:
        """encoded, bounced, control, fallback (VXLAN with MARK), vxlan (without), fragment, or other.

        A fragment is one that is not the first: the rest of a long packet in VXLAN.
        """
        if self.offset:
            return "fragment"
        if self.protocol == UDP and self.payload[2:4] == PORT.to_bytes(2, "big"):
            if self.payload[8] & 8:
                return "fallback" if self.dscp == MARK else "vxlan"
            return "control"
        if self.dscp in (MARK, BOUNCE) and not self.flags & 1:
            return "encoded" if self.dscp == MARK else "bounced"
        return "other"

    @property
    def key(self) -> int:
        return self.id >> SEGMENT_BITS

    @property
    def inner(self) -> Seen | None:
        """The container's packet as it stands on the wire, encoded or in VXLAN; None if there is none."""
        match self.kind:
            case "encoded" | "bounced":
                return self
            case "fallback" | "vxlan" if self.data[48:50] == b"\x08\x00":
                return Seen(self.time, self.data[50:])
        return None


class Seen6(Seen):
    """The same of IPv6. There are no fragments among what these tests send."""

    __slots__ = ()
    flags = offset = 0

    @property
    def tos(self) -> int:
        return int.from_bytes(self.data[:2], "big") >> 4 & 0xFF

    @property
    def dscp(self) -> int:
        return self.tos >> 2

    @property
    def ecn(self) -> int:
        return self.tos & 3

    @property
    def length(self) -> int:
        return 40 + int.from_bytes(self.data[4:6], "big")

    @property
    def ttl(self) -> int:
        return self.data[7]

    @property
    def protocol(self) -> int:
        return self.data[6]

    @property
    def source(self) -> str:
        return socket.inet_ntop(socket.AF_INET6, self.data[8:24])

    @property
    def destination(self) -> str:
        return socket.inet_ntop(socket.AF_INET6, self.data[24:40])

    @property
    def payload(self) -> bytes:
        return self.data[40:]

    @property
    def key(self) -> int:
        """The flow label."""
        return int.from_bytes(self.data[1:4], "big") & 0xFFFFF

    @property
    def inner(self) -> Seen | None:
        match self.kind:
            case "encoded" | "bounced":
                return self
            case "fallback" | "vxlan" if self.data[68:70] == b"\x86\xdd":
                return Seen6(self.time, self.data[70:])
        return None


def watch(where: Host | Container, filter: str = "", *, snaplen: int = 128) -> Capture:
    """Captures at the fabric's side of a host's ``eth0``, or at a container's own ``eth0``.

    Of each packet the headers are kept: the less it is, the more packets the kernel has room for.
    """
    if isinstance(where, Host):
        return where.lab.fabric.capture(where, filter, snaplen=snaplen)
    return Capture(where, "eth0", filter, snaplen=snaplen)


def seen(capture: Capture) -> list[Seen]:
    """Stops a capture, and returns its IPv4 and IPv6 packets."""
    from scapy.utils import RawPcapReader

    packets = []
    with RawPcapReader(str(capture.stop())) as reader:
        for frame, meta in reader:
            if kind := {b"\x08\x00": Seen, b"\x86\xdd": Seen6}.get(frame[12:14]):
                packets.append(kind(meta.sec + meta.usec / 1e6, frame[14:]))
    return packets


def kinds(packets: Iterable[Seen]) -> Counter[str]:
    """How many packets there are of each kind."""
    return Counter(packet.kind for packet in packets)


# Hosts


def stats(host: Host, link: str = "xm0") -> dict[str, int]:
    """The counters of a link."""
    return host.inside(lambda: list_links(link)[0].stats)


def add_clsact(host: Host, *devices: str) -> None:
    """Gives devices the clsact qdisc, for filters, unless they have it."""
    for device in devices:
        if "clsact" not in host.run(f"tc qdisc show dev {device}").stdout:
            host.run(f"tc qdisc add dev {device} clsact")


def make_hookable(host: Host, *devices: str) -> None:
    """Gives devices the qdisc that hooks need where there is no tcx (Linux 6.6).

    While a device gets one, the kernel drops what it should send (net/sched/sch_api.c, qdisc_graft).
    """
    if not _hooks.has_tcx():
        add_clsact(host, *devices)


def need_big_tcp(host: Namespace, device: str) -> None:
    """Skips where no device can have buffers of more than 64 KB; IFLA_TSO_MAX_SIZE came with them."""
    if "tso_max_size" not in host.ip_json(f"link show {device}")[0]:
        pytest.skip("this kernel has no BIG TCP (Linux 5.19)")


def flows(host: Host, link: str = "xm0") -> list[Flow]:
    """What a host encodes."""
    return host.inside(lambda: list(list_flows(link)))


def flow(source: Container, target: Container, link: str = "xm0") -> Flow | None:
    """How packets with DF and without DSCP are encoded in this direction now, if they are."""
    for one in flows(source.host, link):
        if (one.source, one.destination, one.dscp, one.df) == (source.address, target.address, 0, True):
            return one
    return None


def negotiate(source: Container, target: Container, link: str = "xm0") -> None:
    """Has keys given for packets with DF, both ways."""
    for one, other in ((source, target), (target, source)):
        with one.socket() as client:

            def ask(
                one: Container = one, other: Container = other, client: socket.socket = client
            ) -> Flow | None:
                client.sendto(b"?", (other.address, 9))
                return flow(one, other, link)

            until(ask, f"{one.name} to {other.name} is encoded")


def renew(hosts: Iterable[Host], send: Callable[[], object], of: Callable[[Flow], bool]) -> None:
    """Waits until these flows' keys have been renewed: the first time is a second after their grant.

    ``send`` sends a packet of each flow. The one that asks for renewal takes the fallback, and so does the
    next one after half the lease.
    """

    def left() -> dict[tuple[Host, Flow], int]:
        found = {}
        for host in hosts:
            for one in filter(of, flows(host)):
                found[host, replace(one, key=0, lease_left_ms=0)] = one.lease_left_ms
        return found

    least = left()
    waiting = set(least)
    assert waiting, "there is no such flow"

    def renewed() -> bool:
        send()
        for one, now in left().items():
            if now > least.setdefault(one, now):
                waiting.discard(one)
            least[one] = min(now, least[one])
        return not waiting

    until(renewed, "all keys are renewed")


def meet(overlay: Overlay) -> None:
    """Has the hosts resolve each other's link layer addresses, so that no packet waits for that."""
    for host in overlay.hosts:
        for other in overlay.hosts:
            if other is not host:
                assert host.ping(other, count=1).received == 1


def on_hook(host: Host, device: str, side: str) -> list[tuple[str, int]]:
    """Names and ids of the programs on a device's hook in the order in which they run: tcx, then filters."""

    def tcx() -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        if not has_tcx():
            return found
        for number in bpf.prog_query(socket.if_nametoindex(device), {"ingress": 46, "egress": 47}[side]):
            fd = bpf.prog_fd(number)
            found.append((bpf.prog_info(fd).name, number))
            os.close(fd)
        return found

    filters = json.loads(host.run(f"tc -j filter show dev {device} {side}").stdout or "[]")
    options = [one["options"] for one in filters if "prog" in one.get("options", {})]
    return host.inside(tcx) + [(one["bpf_name"], one["prog"]["id"]) for one in options]


def strip(host: Host, device: str, sides: Sequence[str] = ("ingress", "egress")) -> None:
    """Takes all programs off hooks of a device, as somebody else might: with tcx, or the filters."""
    if not has_tcx():
        for side in sides:
            host.run(f"tc filter del dev {device} {side}")
        return

    def detach() -> None:
        index = socket.if_nametoindex(device)
        for side in sides:
            hook = bpf.TCX_INGRESS if side == "ingress" else bpf.TCX_EGRESS
            for number in bpf.prog_query(index, hook):
                fd = bpf.prog_fd(number)
                bpf.prog_detach(index, hook, fd)
                os.close(fd)

    host.inside(detach)


def programs(host: Host, device: str) -> dict[str, int]:
    """The ids of the programs on a device's hooks by their names."""
    return dict(on_hook(host, device, "ingress") + on_hook(host, device, "egress"))


def maps_of(program: int) -> set[int]:
    """The ids of the maps that a program uses."""
    fd = bpf.prog_fd(program)
    try:
        return set(bpf.prog_info(fd).map_ids)
    finally:
        os.close(fd)


def counter(where: Namespace, table: str, name: str) -> int:
    """A counter of /proc/net/netstat: ``table`` is TcpExt or IpExt."""
    text = where.inside(lambda: Path("/proc/thread-self/net/netstat").read_text())
    names, values = (line.split() for line in text.splitlines() if line.startswith(f"{table}:"))
    return int(dict(zip(names, values, strict=True))[name])


# Datagrams

_NUMBER = struct.Struct("!I")


class Receiver:
    """A UDP socket in a namespace; ``receive`` gives what arrived, with its TOS byte."""

    def __init__(self, where: Namespace, port: int = 0) -> None:
        self.socket = where.socket()
        # Enough for a receiver that the machine leaves waiting for seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
        if where.family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        else:
            self.socket.setsockopt(socket.IPPROTO_IP, 13, 1)  # IP_RECVTOS
        self.socket.bind((where.address, port))
        self.address: tuple[str, int] = self.socket.getsockname()[:2]

    def receive(self, timeout: float) -> tuple[bytes, int] | None:
        """The next datagram and its TOS byte, or None when none came for ``timeout`` seconds."""
        if not select.select([self.socket], [], [], timeout)[0]:
            return None
        data, control, _, _ = self.socket.recvmsg(65535, 64)
        wanted = (socket.IPPROTO_IP, 1), (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
        (tos,) = [value[0] for level, kind, value in control if (level, kind) in wanted]
        return data, tos

    def close(self) -> None:
        """Closes the socket."""
        self.socket.close()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stream:
    """Numbered datagrams with DF from one namespace to another, ``rate`` a second.

    A context manager: at its end the stream stops, and after it ``numbers`` has what arrived, in order.
    ``times`` has when each was sent (time.monotonic()).
    """

    def __init__(self, source: Namespace, target: Namespace, *, rate: int, size: int = 200) -> None:
        self.rate = rate
        self.times: list[float] = []
        self.numbers: list[int] = []
        self._size = size
        self._receiver = Receiver(target)
        self.port = self._receiver.address[1]
        self._sender = source.socket()
        self._sender.connect(self._receiver.address)
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]

    def _send(self) -> None:
        begin = time.monotonic()
        padding = bytes(self._size - _NUMBER.size)
        while not self._end.is_set() and self.sent < patience(60) * self.rate:
            early = begin + self.sent / self.rate - time.monotonic()
            if early > 0:
                time.sleep(early)
            self._sender.send(_NUMBER.pack(self.sent) + padding)
            self.times.append(time.monotonic())

    def _receive(self) -> None:
        # After the end, until all has come, or nothing for as long as no packet should take.
        idle = 0.0
        while self._threads[0].is_alive() or (len(self.numbers) < self.sent and idle < patience(1)):
            if got := self._receiver.receive(0.05):
                self.numbers.append(_NUMBER.unpack_from(got[0])[0])
                idle = 0.0
            elif not self._threads[0].is_alive():
                idle += 0.05

    @property
    def sent(self) -> int:
        return len(self.times)

    @property
    def lost(self) -> int:
        return self.sent - len(set(self.numbers))

    @property
    def missing(self) -> list[int]:
        """The numbers of those that were lost."""
        return sorted(set(range(self.sent)) - set(self.numbers))

    @property
    def duplicates(self) -> int:
        return len(self.numbers) - len(set(self.numbers))

    def lost_outside(self, begin: float, end: float) -> int:
        """How many were lost of those that surely were not sent between two times of time.monotonic()."""
        return sum(
            self.times[number] < begin or (number > 0 and self.times[number - 1] > end)
            for number in self.missing
        )

    def wait_for(self, number: int) -> None:
        """Waits until so many datagrams have arrived."""
        until(lambda: len(self.numbers) >= number, f"{number} datagrams arrived", timeout=30)

    def __enter__(self) -> Stream:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *what: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
        info = self._receiver.socket.getsockopt(socket.SOL_SOCKET, 55, 36)  # SO_MEMINFO
        (missed,) = struct.unpack_from("=I", info, 32)  # SK_MEMINFO_DROPS
        self._sender.close()
        self._receiver.close()
        if what[0] is None:
            # Too many came while the thread was not there, or their checksums were wrong.
            assert not missed, f"the receiver's socket has dropped {missed} datagrams"
