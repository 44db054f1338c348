# SPDX-License-Identifier: Apache-2.0
"""Errors that the underlay has about encoded packets: path MTU, unreachable, a peer without datapath."""

from __future__ import annotations

import re
import socket
import time
from itertools import permutations

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import ICMP, IP, UDP
from scapy.packet import Raw

from tests.e2e.conftest import Make
from tests.e2e.observe import Stream, flow, meet, negotiate, renew, seen, stats, watch
from tests.lab import (
    Container,
    Host,
    Lab,
    Overlay,
    patience,
    routed_overlay,
    tcp_transfer,
    xmasq,
)
from xmasq_link import _wire as wire
from xmasq_link._hooks import detach, filters

pytestmark = pytest.mark.e2e

MTU = 1400
_SO_MARK, _IP_RECVERR, _IP_MTU_DISCOVER, _PMTUDISC_PROBE = 36, 11, 10, 3
_IPV6_MTU_DISCOVER, _IPV6_RECVERR = 23, 25


def learned(container: Container, other: Container) -> int:
    """The path MTU that a container's kernel knows, 0 if none."""
    text = container.run(["ip", "route", "get", other.address]).stdout
    found = re.search(r" mtu (\d+)", text)
    return int(found[1]) if found else 0


def forget(overlay: Overlay) -> None:
    """Has the containers forget path MTUs: TCP tells the other end of its own."""
    for container in overlay.containers:
        container.run(["ip", *(["-6"] if ":" in container.address else []), "route", "flush", "cache"])


# --- a router has an MTU of 1400 ------------------------------------------------------------------


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def row(request: pytest.FixtureRequest, lab: Lab, make: Make) -> Overlay:
    """Two hosts with two routers between them, whose link has an MTU of 1400.

    No key is renewed within the next half minute: the packet that asks for that takes the fallback, which
    has other limits.
    """
    hosts = lab.hosts(2, family=request.param)
    lab.row(*hosts, mtu=MTU)
    overlay = make(hosts, kind="xmasq", options=["lease", "60s"])
    meet(overlay)
    a, b = overlay.containers
    negotiate(a, b)

    def send() -> None:
        for source, target in ((a, b), (b, a)):
            source.ping(target, count=1, df=True)

    renew(hosts, send, lambda one: one.dscp == 0 and one.df)
    return overlay


def test_a_ping_learns_the_path_mtu(row: Overlay) -> None:
    for source, target in permutations(row.containers):
        headers = 28 if row.family == 4 else 48
        words = f"Frag needed and DF set (mtu = {MTU})" if row.family == 4 else f"Packet too big: mtu={MTU}"
        said = source.ping(target, count=1, size=1500 - headers, df=True, wait=0.5)
        assert said.received == 0
        assert f"From {target.address} icmp_seq=1 {words}" in said.output
        assert learned(source, target) == MTU
        assert source.ping(target, count=3, size=MTU - headers, df=True).received == 3
        assert (stats(source.host)["icmp_rx"], stats(source.host)["error"]) == (1, 0)


def test_tcp_learns_the_path_mtu_both_ways(row: Overlay) -> None:
    for source, target in permutations(row.containers):
        forget(row)
        before = stats(source.host)
        tcp_transfer(source, target, 3_000_000)
        after = stats(source.host)
        assert learned(source, target) == MTU
        assert after["icmp_rx"] > before["icmp_rx"]
        assert after["encoded_bytes"] - before["encoded_bytes"] > 2_500_000
        assert after["error"] == 0


def test_a_quote_of_udp_reaches_its_socket(row: Overlay) -> None:
    """The kernel finds it by the addresses and ports in the quote."""
    a, b = row.containers
    with a.socket() as client:
        client.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        client.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        client.connect((b.address, 9))
        client.settimeout(patience(2))
        client.send(bytes(1472))
        with pytest.raises(OSError, match="Message too long"):
            client.recv(1)


# --- a router refuses what is not VXLAN ------------------------------------------------------------


def test_a_router_that_lets_only_vxlan_through(lab: Lab) -> None:
    """Its errors do not reach the container, whose traffic vxlan would carry: so does the fallback."""
    hosts = lab.hosts(2)
    near, _ = lab.row(*hosts, mtu=1500)
    rules = "add table ip f; add chain ip f forward { type filter hook forward priority 0; }; "
    rules += "add rule ip f forward udp dport != 4789 reject with icmp type admin-prohibited; "
    rules += "add rule ip f forward ip protocol != udp reject with icmp type admin-prohibited"
    near.run(["nft", rules])
    overlay = routed_overlay(hosts)
    meet_by_vxlan(overlay)
    a, b = overlay.containers
    said = a.ping(b, count=100, df=True)
    assert "ilter" not in said.output  # "Packet filtered"
    assert said.lost <= 3
    counted = stats(a.host)
    assert 1 <= counted["icmp_refused"] <= 3
    assert (counted["icmp_rx"], counted["peer_gone"]) == (0, 0)
    assert counted["encoded"] <= 5


def meet_by_vxlan(overlay: Overlay) -> None:
    """Has the routers and hosts resolve addresses, by packets that need no answer."""
    for source, target in permutations(overlay.hosts, 2):
        with source.socket() as client:
            client.sendto(b"?", (target.address, 4789))
    time.sleep(0.1)


# --- nobody decodes any more ------------------------------------------------------------------------


@pytest.fixture
def pair(request: pytest.FixtureRequest, lab: Lab) -> Overlay:
    """Two hosts with a long lease, encoding to each other."""
    overlay = routed_overlay(lab.hosts(2, family=getattr(request, "param", 4)), options=["lease", "30s"])
    meet(overlay)
    negotiate(*overlay.containers)
    return overlay


def lose_datapath(host: Host) -> None:
    """Takes all hooks away behind our back: a plain vxlan host remains."""

    def take() -> None:
        with IPRoute() as ipr:
            for device in ("xm0", "eth0"):
                for found in filters(ipr, ipr.link_lookup(ifname=device)[0]):
                    detach(ipr, found)

    host.inside(take)


@pytest.mark.parametrize("pair", [4, 6], indirect=True, ids=["IPv4", "IPv6"])
def test_port_unreachable_by_the_peer_itself_ends_encoding(pair: Overlay) -> None:
    a, b = pair.containers
    lose_datapath(b.host)
    with Stream(a, b, rate=200) as stream:
        stream.wait_for(200)
    assert stats(a.host)["peer_gone"] >= 1
    assert stats(a.host)["icmp_rx"] == 0
    assert 1 <= stream.lost < 20
    assert flow(a, b) is None


@pytest.mark.parametrize("pair", [4, 6], indirect=True, ids=["IPv4", "IPv6"])
def test_a_reset_by_the_peer_itself_ends_encoding(pair: Overlay) -> None:
    a, b = pair.containers
    lose_datapath(b.host)
    result = tcp_transfer(a, b, 100_000)
    assert stats(a.host)["peer_gone"] >= 1
    assert result.seconds < 5
    assert flow(a, b) is None


# --- others ------------------------------------------------------------------------------------------


def send_error(where: Host, target: Host, quoted: bytes, **icmp: int) -> None:
    """Sends an ICMP error that quotes a packet, from its IP header on."""
    with where.socket(kind=socket.SOCK_RAW, proto=socket.IPPROTO_ICMP) as raw:
        raw.sendto(bytes(ICMP(**icmp) / Raw(quoted)), (target.address, 0))


def test_forged_errors(lab: Lab) -> None:
    """From a host that is no VTEP: with keys that are not in use, and with one that is."""
    overlay = routed_overlay(lab.hosts(2))
    attacker = lab.host()
    meet(overlay)
    negotiate(*overlay.containers)
    a, b = overlay.containers
    present = flow(a, b)
    assert present
    forged = {"type": 3, "code": 4, "nexthopmtu": 576}

    def quote(key: int) -> bytes:
        head = IP(
            src=a.host.address, dst=b.host.address, flags="DF", id=wire.wire_id(key), tos=wire.MARK << 2
        )
        return bytes(head / UDP(sport=4000, dport=5000) / bytes(64))

    for key in range(present.key + 10, present.key + 110):
        send_error(attacker, a.host, quote(key), **forged)
        send_error(attacker, a.host, quote(key), type=3, code=3)
    assert stats(a.host)["icmp_stray"] == 200
    assert (stats(a.host)["icmp_rx"], learned(a, b)) == (0, 0)

    # One that is in use is the container's to judge; its TCP believes none without a right sequence number.
    head = IP(
        src=a.host.address, dst=b.host.address, flags="DF", id=wire.wire_id(present.key), tos=wire.MARK << 2
    )
    for port in (5000, 5001):
        tcp = bytes.fromhex(f"{port:04x}{port:04x}000000070000000050180000") + bytes(4)
        send_error(attacker, a.host, bytes(head) + tcp, **forged)
    tcp_transfer(a, b, 100_000, port=5001)
    assert learned(a, b) == 0
    assert flow(a, b)


def test_errors_about_the_hosts_own_traffic_pass(lab: Lab) -> None:
    overlay = routed_overlay(lab.hosts(2))
    meet(overlay)
    negotiate(*overlay.containers)
    h1, h2 = overlay.hosts
    with h1.socket() as client:
        client.connect((h2.address, 9))
        client.settimeout(patience(2))
        client.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)
    assert stats(h1)["icmp_stray"] == stats(h1)["peer_gone"] == 0


# --- flows that stay in the fallback ------------------------------------------------------------------

ROOM = 1500 - 50


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6 inside"])
def slow(request: pytest.FixtureRequest, lab: Lab, make: Make) -> Overlay:
    """Containers with the underlay's MTU whose flows are never encoded: one host's fast path is off, or
    they speak IPv6 over an IPv4 underlay."""
    overlay = make(lab.hosts(2, ipv6=request.param == 6), kind="xmasq", family=4, inner=request.param)
    xmasq(overlay.hosts[1], "link", "set", "xm0", "fastpath", "off")
    meet(overlay)
    return overlay


def test_a_full_size_packet_arrives_and_its_sender_is_told(slow: Overlay) -> None:
    """The link as a bridge port: for IPv6 it is the vxlan driver that tells, and drops the packet."""
    v6 = slow.inner == 6
    dropped = v6 and slow.mode == "bridged"
    size = 1500 - (48 if v6 else 28)
    for source, target in permutations(slow.containers):
        source.ping(target, count=2)
        forget(slow)
        time.sleep(1.1)  # an answer of the first ping may have been too big, too
        said = source.ping(target, count=1, size=size, df=True)
        if "mtu" not in said.output:
            assert said.received == 1
            time.sleep(0.6)  # for a grant that does not come
            said = source.ping(target, count=1, size=size, df=True)
        assert ("Packet too big: mtu=1450" if v6 else f"needed and DF set (mtu = {ROOM})") in said.output
        assert said.received == 0 if dropped else 1
        assert learned(source, target) == ROOM
        assert stats(source.host)["too_big_tx"] >= 1


def test_tcp_keeps_to_what_fits(slow: Overlay) -> None:
    a, b = slow.containers
    a.ping(b, count=2)
    tcp_transfer(a, b, 1_000_000)
    time.sleep(0.6)
    tcp_transfer(a, b, 5_000_000)
    assert learned(a, b) == ROOM
    with watch(a.host, "ip[6:2] & 0x3fff != 0", snaplen=64) as capture:
        tcp_transfer(a, b, 5_000_000)
    assert len(seen(capture)) < 20  # fragments
    assert stats(a.host)["encoded"] == 0


def test_a_flow_that_gets_its_grant_keeps_the_underlays_mtu(lab: Lab, make: Make) -> None:
    overlay = make(lab.hosts(2), kind="xmasq")
    meet(overlay)
    a, b = overlay.containers
    for _ in range(3):
        tcp_transfer(a, b, 5_000_000)
        time.sleep(0.5)
    assert learned(a, b) == 0
    assert stats(a.host)["too_big_tx"] == 0
