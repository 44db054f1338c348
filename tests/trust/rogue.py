# SPDX-License-Identifier: Apache-2.0
"""What the attackers' tests work with: made-up packets, and who looks whether one got through.

The attackers are strong ones: they know all addresses, flows and keys, and guess only what the
protocol keeps secret, the nonces.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

import xmasq_link
from tests.lab import Capture, Host, Namespace, Overlay
from xmasq_link._wire import CONFIRM, CTL_LEN, MARK, OFFER, PORT, VXLAN_FLAG_I, Control, wire_id

#: Stands in the payload of every made-up packet.
TOKEN = b"made up by the tests"
KEYS = range(1, 1024)
#: A port that nobody listens to.
DISCARD = 9

_RCVBUFFORCE, _IGNORE_OUTGOING = 33, 23  # SO_RCVBUFFORCE, PACKET_IGNORE_OUTGOING
_ETH_P_ALL, _ETH_P_IP = 3, 0x0800
_ETH, _IP, _UDP = 14, 20, 8


def lladdr(where: Namespace, device: str = "eth0") -> str:
    """The MAC address of a device."""
    return str(where.ip_json(f"link show {device}")[0]["address"])


class Rogue:
    """A machine on the underlay that makes up packets and sends them as they are.

    ``device``: of the host, without hooks of ours, or they clear MARK from what is sent. Frames carry
    the machine's own MAC address: a switch that was taken in by a false one would lose others' packets.
    """

    def __init__(self, host: Host, device: str = "eth0") -> None:
        self.host = host
        self.mac = lladdr(host, device)
        self._macs: dict[Namespace, str] = {}
        self._socket = host.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.bind((device, _ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 1 << 24)
        host.lab.at_exit(self._socket.close)

    def frame(
        self,
        target: Host,
        content: Packet,
        *,
        source: str = "",
        dscp: int = MARK,
        ident: int = 0,
        df: bool = True,
        address: str = "",
    ) -> bytes:
        """An Ethernet frame to ``target`` with ``content`` behind the IPv4 header.

        ``source`` and ``address`` (the destination) stand for other addresses than the two hosts'.
        """
        if target not in self._macs:
            self._macs[target] = lladdr(target)
        ip = IP(
            src=source or self.host.address,
            dst=address or target.address,
            tos=dscp << 2,
            id=ident,
            flags="DF" if df else 0,
            ttl=64,
        )
        return bytes(Ether(src=self.mac, dst=self._macs[target]) / ip / content)

    def controls(
        self, target: Host, many: Iterable[Control], *, source: str = "", secret: bytes | None = None
    ) -> Iterator[bytes]:
        """Control packets as the protocol has them, sealed if there is a ``secret``."""
        size = CTL_LEN
        datagram = UDP(sport=PORT, dport=PORT, chksum=0) / Raw(bytes(size) + TOKEN)
        start = _ETH + _IP + _UDP
        frame = self.frame(target, datagram, source=source)
        for one in many:
            said = one if secret is None else one.sealed(source or self.host.address, target.address, secret)
            (headers,) = with_keys(frame, [one.key])
            yield headers[:start] + said.pack() + headers[start + size :]

    def vxlan(self, target: Host, inner: Packet, vni: int, *, source: str = "", dscp: int = MARK) -> bytes:
        """A packet of the tunnel, announced as one of a host that speaks xmasq."""
        datagram = UDP(sport=50_000, dport=PORT, chksum=0) / Raw(vxlan(inner, vni))
        return self.frame(target, datagram, source=source, dscp=dscp, df=False)

    def send(self, frames: Iterable[bytes]) -> int:
        """Sends, with pauses that keep the receivers' queues short; returns how many."""
        count = 0
        for frame in frames:
            self._socket.send(frame)
            count += 1
            if count % 128 == 0:
                time.sleep(0.001)
        return count

    def received(self, seconds: float = 0.2) -> list[bytes]:
        """What came to this machine until now and so much later, from the IPv4 header on."""
        mac, found = bytes.fromhex(self.mac.replace(":", "")), []
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                frame = self._socket.recv(2048)
            except TimeoutError:
                break
            if frame[:6] == mac and frame[12:14] == b"\x08\x00":
                found.append(frame[_ETH:])
        return found


def vxlan(inner: Packet, vni: int) -> bytes:
    """The UDP payload of a packet of the tunnel."""
    return struct.pack("!B3xI", VXLAN_FLAG_I, vni << 8) + bytes(inner)


def contents() -> list[Packet]:
    """What goes behind an IPv4 header and is answered by nobody: an echo reply and a TCP reset."""
    return [ICMP(type=0) / Raw(TOKEN), TCP(sport=7000, dport=DISCARD, flags="R") / Raw(TOKEN)]


def with_keys(frame: bytes, keys: Iterable[int] = KEYS) -> Iterator[bytes]:
    """The frame, once with each key in its Identification."""
    for key in keys:
        header = bytearray(frame[_ETH : _ETH + _IP])
        header[4:6] = wire_id(key).to_bytes(2, "big")
        header[10:12] = bytes(2)
        header[10:12] = checksum(bytes(header)).to_bytes(2, "big")
        yield frame[:_ETH] + bytes(header) + frame[_ETH + _IP :]


def nonces(control: Control, rng: random.Random) -> Control:
    """With nonces that are guessed."""
    return replace(
        control,
        nonce_a=0 if control.type == OFFER else rng.getrandbits(32),
        nonce_b=rng.getrandbits(32),
    )


def controls(
    kind: int, flow: xmasq_link.Flow | xmasq_link.Key, rng: random.Random, keys: Iterable[int] = KEYS
) -> Iterator[Control]:
    """A control packet of one type for this flow with every key, the nonces guessed."""
    for key in keys:
        yield nonces(
            Control(
                kind,
                flow.vni,
                flow.source_mac,
                flow.destination_mac,
                flow.source,
                flow.destination,
                key,
                60_000 if kind == CONFIRM else 10_000,
                dscp=flow.dscp,
                variant=0 if flow.df else 1,
            ),
            rng,
        )


class Watch:
    """Sees every IPv4 packet that reaches these containers."""

    def __init__(self, containers: Sequence[Namespace]) -> None:
        self._sockets: dict[socket.socket, Namespace] = {}
        for container in containers:
            one = container.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))
            one.setsockopt(263, _IGNORE_OUTGOING, 1)  # SOL_PACKET
            one.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 1 << 25)
            one.bind(("eth0", _ETH_P_IP))
            one.setblocking(False)
            container.lab.at_exit(one.close)
            self._sockets[one] = container

    def got(self, token: bytes = TOKEN) -> list[tuple[Namespace, bytes]]:
        """Packets with ``token`` in them since the last call: where, and all from the IPv4 header on.

        By default those that were made up, but for their quotations in ICMP errors.
        """
        found = []
        for one, container in self._sockets.items():
            while True:
                try:
                    packet = one.recv(2048)
                except BlockingIOError:
                    break
                if token in packet and not (packet[9] == socket.IPPROTO_ICMP and packet[20] in (3, 11)):
                    found.append((container, packet))
        return found


def source_of(packet: bytes) -> str:
    """The source address of an IPv4 packet."""
    return socket.inet_ntoa(packet[12:16])


def target_of(packet: bytes) -> str:
    """The destination address of an IPv4 packet."""
    return socket.inet_ntoa(packet[16:20])


@dataclass(frozen=True)
class Tables:
    """What the hosts' tables say of who talks to whom, without what changes with time."""

    flows: frozenset[tuple[str, ...]]
    keys: frozenset[tuple[str, ...]]
    peers: frozenset[tuple[str, ...]]

    @classmethod
    def of(cls, hosts: Iterable[Host]) -> Tables:
        """All hosts' together."""
        flows, keys, peers = set(), set(), set()
        for host in hosts:
            with_host = host.inside(
                lambda: (list(xmasq_link.flows()), list(xmasq_link.keys()), xmasq_link.peers())
            )
            for f in with_host[0]:
                way = (f.source_mac, f.destination_mac, f.source, f.destination, str(f.dscp), str(f.df))
                flows.add((host.name, f.link, *way, f.peer, str(f.key)))
            for k in with_host[1]:
                way = (k.source_mac, k.destination_mac, k.source, k.destination, str(k.dscp), str(k.df))
                keys.add((host.name, k.link, *way, k.peer, str(k.key), k.state))
            peers |= {(host.name, p.local, p.peer, p.verdict) for p in with_host[2]}
        return cls(frozenset(flows), frozenset(keys), frozenset(peers))


def flow_of(overlay: Overlay, source: Namespace, target: Namespace) -> xmasq_link.Flow:
    """The flow with DF and without DSCP between two containers, which must be encoded."""
    host = next(one.host for one in overlay.containers if one is source)
    return next(
        flow
        for flow in host.inside(lambda: list(xmasq_link.flows(overlay.link)))
        if (flow.source, flow.destination, flow.dscp, flow.df) == (source.address, target.address, 0, True)
    )


def frames(capture: Capture) -> list[bytes]:
    """Stops a capture, and returns its frames."""
    from scapy.utils import RawPcapReader

    with RawPcapReader(str(capture.stop())) as reader:
        return [frame for frame, _ in reader]


def again(frame: bytes, mac: str, source: str = "") -> bytes:
    """A captured frame, to be sent from another MAC address, and from another IPv4 address if given."""
    header = bytearray(frame[_ETH : _ETH + _IP])
    if source:
        header[12:16] = socket.inet_aton(source)
        header[10:12] = bytes(2)
        header[10:12] = checksum(bytes(header)).to_bytes(2, "big")
    return frame[:6] + bytes.fromhex(mac.replace(":", "")) + frame[12:_ETH] + bytes(header) + frame[34:]


def is_control(frame: bytes) -> bool:
    """Whether this frame is a control packet."""
    ports = frame[_ETH + _IP + 2 : _ETH + _IP + 4]
    return (
        frame[12:14] == b"\x08\x00"
        and frame[_ETH + 9] == socket.IPPROTO_UDP
        and ports == PORT.to_bytes(2, "big")
        and not frame[_ETH + _IP + _UDP] & VXLAN_FLAG_I
    )


def is_encoded(frame: bytes) -> bool:
    """Whether this frame is an encoded packet."""
    ports = frame[_ETH + _IP + 2 : _ETH + _IP + 4]
    return (
        frame[12:14] == b"\x08\x00"
        and frame[_ETH + 1] >> 2 == MARK
        and not (frame[_ETH + 9] == socket.IPPROTO_UDP and ports == PORT.to_bytes(2, "big"))
    )


#: Sends datagrams from a raw socket. Lines of JSON: source and destination address, TOS byte,
#: Identification, protocol, and what follows the header, in hexadecimal.
_RAW = """
import json, socket, struct, sys, time
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for number, line in enumerate(sys.stdin):
    if number % 32 == 0:
        time.sleep(0.001)
    source, target, tos, ident, protocol, rest = json.loads(line)
    data = bytes.fromhex(rest)
    raw.sendto(struct.pack("!BBHHHBBH4s4s", 0x45, tos, 20 + len(data), ident, 0x4000, 64, protocol, 0,
        socket.inet_aton(source), socket.inet_aton(target)) + data, (target, 0))
"""


def send_raw(where: Namespace, packets: Iterable[tuple[str, str, int, int]], content: Packet) -> int:
    """Sends ``content`` from raw sockets in a container; returns how often.

    A packet is its source and destination address, DSCP, and Identification, which must not be 0, for
    then the kernel chooses one. DF is set.
    """
    lines = []
    for source, target, dscp, ident in packets:
        whole = bytes(IP(src=source, dst=target) / content)
        lines.append(json.dumps([source, target, dscp << 2, ident, whole[9], whole[_IP:].hex()]))
    where.run([sys.executable, "-c", _RAW], input="\n".join(lines) + "\n")
    return len(lines)


#: Sends a datagram over and over from an address, in the name of nobody, who may do nothing special.
_NOBODY = """
import os, socket, sys, time
os.setgid(65534)
os.setuid(65534)
address, target, port, payload, seconds, cpu = sys.argv[1:]
os.sched_setaffinity(0, [int(cpu)])
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.bind((address, 0))
end = time.monotonic() + float(seconds)
while time.monotonic() < end:
    one.sendto(bytes.fromhex(payload), (target, int(port)))
    time.sleep(0.0005)
"""


def nobody_sends(host: Host, target: Namespace, payload: bytes, *, seconds: float) -> None:
    """Starts processes without privileges in a host's own namespace, one on each CPU.

    They send from the host's address to the tunnel's port at ``target``.
    """
    for cpu in os.sched_getaffinity(0):
        words = [host.address, target.address, str(PORT), payload.hex(), str(seconds), str(cpu)]
        host.popen([sys.executable, "-c", _NOBODY, *words])
