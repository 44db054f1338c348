# SPDX-License-Identifier: Apache-2.0
"""xmasq between two kernels, over a real driver with its offloads on and off."""

from __future__ import annotations

import json
import platform
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import patience

from .ends import End, connect

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        "xmasq.pair=1" not in Path("/proc/cmdline").read_text(), reason="not in a pair of guests"
    ),
]

TCP_SERVER = """
import hashlib, socket, sys
with socket.create_server((sys.argv[1], 5000)) as s:
    s.settimeout(float(sys.argv[2]))
    c, _ = s.accept()
    c.settimeout(float(sys.argv[2]))
    h, n = hashlib.sha256(), 0
    while d := c.recv(1 << 18):
        h.update(d)
        n += len(d)
    c.sendall(h.hexdigest().encode())
print(n, h.hexdigest())
"""
TCP_CLIENT = """
import hashlib, os, socket, sys, time
end = time.monotonic() + float(sys.argv[2])
while True:
    try:
        s = socket.create_connection((sys.argv[1], 5000), timeout=float(sys.argv[2]))
        break
    except OSError:
        if time.monotonic() > end:
            raise
        time.sleep(0.1)
h = hashlib.sha256()
for _ in range(int(sys.argv[3])):
    d = os.urandom(65536)
    h.update(d)
    s.sendall(d)
s.shutdown(socket.SHUT_WR)
assert s.recv(64).decode() == h.hexdigest(), "the content changed on the way"
print(h.hexdigest())
"""
UDP_SERVER = """
import socket, sys
s = socket.socket(type=socket.SOCK_DGRAM)
s.bind((sys.argv[1], 5001))
s.settimeout(float(sys.argv[2]))
while (d := s.recvfrom(65535))[0] != b"end":
    s.sendto(*d)
"""
UDP_CLIENT = """
import os, socket, sys, time
s = socket.socket(type=socket.SOCK_DGRAM)
s.connect((sys.argv[1], 5001))
end = time.monotonic() + float(sys.argv[2])
s.settimeout(0.5)
while True:  # until the server is there
    try:
        s.send(b"hello")
        s.recv(65535)
        break
    except OSError:
        assert time.monotonic() < end, "no server"
s.settimeout(float(sys.argv[2]))
for n in range(int(sys.argv[3])):
    d = n.to_bytes(4, "big") + os.urandom(1 + n * 37 % 1460)
    s.send(d)
    while (got := s.recv(65535)) == b"hello":
        pass
    assert got == d, "the content changed on the way"
s.send(b"end")
"""


@pytest.fixture(scope="module")
def ends() -> Iterator[tuple[End, End]]:
    """Both ends, which have met."""
    here, there = connect()
    print(f"here {platform.release()}, there {there.run('uname -r').strip()}")
    for _ in range(3):  # each way is negotiated with the first packets; ARP goes first
        here.inside(["ping", "-c", "3", "-i", "0.2", "-W", "5", there.address])
    yield here, there
    there.close()


def transfer(source: End, target: End, blocks: int) -> None:
    """A TCP transfer with a hash of what was sent at one end, and of what arrived at the other."""
    limit = f"{patience(30):g}"
    served: list[str] = []
    server = threading.Thread(
        target=lambda: served.append(target.run(target.python(TCP_SERVER, target.address, limit)))
    )
    server.start()
    sent = source.run(source.python(TCP_CLIENT, target.address, limit, str(blocks))).split()[0]
    server.join()
    assert served
    assert served[0].split() == [str(blocks * 65536), sent]


OFFLOADS = {
    "all on": {"tx": True, "rx": True, "sg": True, "tso": True, "gso": True, "gro": True},
    "no tso": {"tx": True, "rx": True, "tso": False, "gso": True, "gro": True},
    "no gso": {"tx": True, "rx": True, "tso": False, "gso": False, "gro": True},
    "no gro": {"tx": True, "rx": True, "tso": True, "gso": True, "gro": False},
    "no checksums": {"tx": False, "rx": False, "tso": False, "gso": True, "gro": True},
    "all off": {"tx": False, "rx": False, "sg": False, "tso": False, "gso": False, "gro": False},
}


def share(before: dict[str, int], after: dict[str, int]) -> float:
    """Which part of what left through a link was encoded."""
    encoded = after["encoded"] - before["encoded"]
    return encoded / max(1, encoded + after["fallback"] - before["fallback"])


@pytest.mark.parametrize("name", OFFLOADS)
@pytest.mark.parametrize("way", ["there", "back"])
def test_tcp(ends: tuple[End, End], name: str, way: str) -> None:
    for end in ends:
        end.offloads(**OFFLOADS[name])
    source, target = ends if way == "there" else ends[::-1]
    before = [end.counters() for end in (source, target)]
    transfer(source, target, 60)
    after = [end.counters() for end in (source, target)]
    assert share(before[0], after[0]) > 0.8
    assert share(before[1], after[1]) > 0.5  # acknowledgements are fewer, and the first ones go by VXLAN
    decoded = after[1]["decoded"] - before[1]["decoded"]
    assert decoded > 20
    for at in (0, 1):
        for counter in ("bounce_tx", "stray", "error", "ctl_bad"):
            assert after[at].get(counter, 0) == before[at].get(counter, 0), counter


def driver() -> str:
    """The driver of the NIC on the wire."""
    return Path("/sys/class/net/wire/device/driver").resolve().name


def test_the_nic_segments(ends: tuple[End, End]) -> None:
    """Where the driver can, the NIC itself cuts encoded packets, and counts IDs up as it does."""
    here, there = ends
    if driver() != "e1000e":
        pytest.skip(f"{driver()} leaves segmentation to whoever needs it")
    for end in ends:
        end.offloads(**OFFLOADS["all on"])

    def segmented() -> int:
        for line in here.run("ethtool -S wire").splitlines():
            if "tx_tcp_seg_good" in line:
                return int(line.split(":")[1])
        raise AssertionError("e1000e counts no segmentation")

    before, counters = segmented(), here.counters()
    transfer(here, there, 100)
    assert segmented() > before
    assert share(counters, here.counters()) > 0.8


@pytest.mark.parametrize("way", ["there", "back"])
def test_packets_cross_the_wire_in_one_piece(ends: tuple[End, End], way: str) -> None:
    """As between two virtual machines of a host: nobody cuts a long packet, nor computes its checksum."""
    if driver() != "virtio_net":
        pytest.skip(f"{driver()} sends segments")
    for end in ends:
        end.offloads(**OFFLOADS["all on"])
    source, target = ends if way == "there" else ends[::-1]

    def arrived() -> list[int]:
        return [
            int(target.run(f"cat /sys/class/net/wire/statistics/rx_{what}")) for what in ("bytes", "packets")
        ]

    before, counters = arrived(), source.counters()
    transfer(source, target, 100)
    octets, packets = (after - first for after, first in zip(arrived(), before, strict=True))
    assert octets > 100 * 65536
    assert octets / packets > 3000
    assert share(counters, source.counters()) > 0.8


@pytest.mark.parametrize("name", ["all on", "all off"])
def test_udp(ends: tuple[End, End], name: str) -> None:
    here, there = ends
    for end in ends:
        end.offloads(**OFFLOADS[name])
    limit = f"{patience(3):g}"
    before = [end.counters() for end in ends]
    server = threading.Thread(target=lambda: there.run(there.python(UDP_SERVER, there.address, limit)))
    server.start()
    try:
        here.run(here.python(UDP_CLIENT, there.address, limit, "200"))
    finally:
        server.join()
    for end, counters in zip(ends, before, strict=True):
        assert end.counters()["encoded"] - counters["encoded"] > 150


def test_ping(ends: tuple[End, End]) -> None:
    here, there = ends
    before = here.counters()
    said = here.inside(["ping", "-c", "50", "-i", "0.05", "-W", "10", there.address])
    assert " 0% packet loss" in said
    after = here.counters()
    assert after["encoded"] - before["encoded"] > 40
    assert json.loads(here.xmasq("-j flow show"))
    assert json.loads(here.xmasq("-j key show"))
