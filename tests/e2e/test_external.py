# SPDX-License-Identifier: Apache-2.0
"""vxlan devices in external (collect metadata) mode: VNI and peer come with each packet."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from kmod_ebpf import bpf
from tests.lab import Container, Host, patience, tcp_transfer, udp_echo, xmasq, xmasq_json
from xmasq_link import _hooks
from xmasq_link import flows as list_flows
from xmasq_link import keys as list_keys

from .observe import Stream, kinds, make_hookable, programs, seen, stats, until, watch

pytestmark = pytest.mark.e2e

TENANTS = (1000, 2000)
_KEY = 44  # struct bpf_tunnel_key


def instruction(code: int, dst: int = 0, src: int = 0, off: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhI", code, src << 4 | dst, off, value & 0xFFFFFFFF)


def to_tunnel(vni: int, peer: str, device: int) -> bytes:
    """As Cilium's program on a container's device: sets the tunnel's metadata, and sends to the device."""
    key = dict.fromkeys(range(0, _KEY, 4), 0) | {0: vni, 4: int(ipaddress.ip_address(peer)), 20: 64 << 8}
    return b"".join(
        [
            instruction(0xBF, 6, 1),  # r6 = r1
            *(instruction(0x62, 10, 0, at - _KEY, value) for at, value in key.items()),
            instruction(0xBF, 1, 6),
            instruction(0xBF, 2, 10),
            instruction(0x07, 2, 0, 0, -_KEY),
            instruction(0xB7, 3, 0, 0, _KEY),
            instruction(0xB7, 4, 0, 0, 0),
            instruction(0x85, value=21),  # bpf_skb_set_tunnel_key
            instruction(0xB7, 1, 0, 0, device),
            instruction(0xB7, 2, 0, 0, 0),
            instruction(0x85, value=23),  # bpf_redirect
            instruction(0x95),
        ]
    )


def from_tunnel(devices: dict[int, int], map_fd: int) -> bytes:
    """As its program on the tunnel's device: reads the metadata, and sends to the container that they name.

    map_fd: an array map, whose element 0 gets the metadata of the last packet.
    """
    tail = [
        (instruction(0x61, 7, 10, -_KEY), 1),  # r7 = VNI
    ]
    out = [code for code, _ in tail]
    for vni, device in devices.items():
        out += [
            instruction(0x55, 7, 0, 4, vni),  # if r7 != vni goto + 4
            instruction(0xB7, 1, 0, 0, device),
            instruction(0xB7, 2, 0, 0, 0),
            instruction(0x85, value=23),
            instruction(0x95),
        ]
    out += [instruction(0xB7, 0, 0, 0, 2), instruction(0x95)]  # TC_ACT_SHOT
    return b"".join(
        [
            instruction(0xBF, 6, 1),
            instruction(0xBF, 2, 10),
            instruction(0x07, 2, 0, 0, -_KEY),
            instruction(0xB7, 3, 0, 0, _KEY),
            instruction(0xB7, 4, 0, 0, 0),
            instruction(0x85, value=20),  # bpf_skb_get_tunnel_key
            instruction(0x62, 10, 0, -_KEY - 4, 0),
            instruction(0xBF, 2, 10),
            instruction(0x07, 2, 0, 0, -_KEY - 4),
            instruction(0xBF, 3, 10),
            instruction(0x07, 3, 0, 0, -_KEY),
            instruction(0x18, 1, 1, 0, map_fd),
            instruction(0),
            instruction(0xB7, 4, 0, 0, 0),
            instruction(0x85, value=2),  # bpf_map_update_elem
            *out,
        ]
    )


class Node:
    """A host with a vxlan device in external mode, and programs like those of Cilium."""

    def __init__(self, host: Host, peer: Host, tenants: tuple[int, ...]) -> None:
        self.host = host
        host.ip(
            f"link add vx0 type vxlan external local {host.address} dstport 4789 nolearning",
            "link set vx0 up",
            "link add br0 type bridge",
        )
        self.containers: dict[int, Container] = {}
        for vni in tenants:
            # In each tenant the same addresses, MACs included.
            one = host.add_container(
                f"t{vni}",
                f"198.51.100.{host.number}",
                mode="bridged",
                prefixlen=24,
                bridge="br0",
                mtu=1450,
                mac=f"02:01:00:00:00:{host.number:02x}",
            )
            host.ip(f"link set {one.veth} nomaster")
            self.containers[vni] = one
        self._last = bpf.Map.create("last", 2, 4, _KEY, 1)
        host.inside(lambda: self._attach(peer))

    def _attach(self, peer: Host) -> None:
        device = socket.if_nametoindex("vx0")
        veths = {vni: socket.if_nametoindex(one.veth) for vni, one in self.containers.items()}
        programs = [(veth, to_tunnel(vni, peer.address, device)) for vni, veth in veths.items()]
        with IPRoute() as ipr, contextlib.ExitStack() as undo:
            for index, code in [*programs, (device, from_tunnel(veths, self._last.fd))]:
                fd = bpf.prog_load("like_cilium", code)
                _hooks.prepare(ipr, index, undo)
                _hooks.attach(ipr, index, _hooks.INGRESS, "like_cilium", fd)
                os.close(fd)
            undo.pop_all()

    @property
    def last(self) -> tuple[int, str, str]:
        """VNI, source and destination of the outer header, as the program has read them last."""
        raw = self._last.lookup(bytes(4))
        assert raw
        vni, source = struct.unpack_from("<II", raw)
        (target,) = struct.unpack_from("<I", raw, 28)
        return vni, str(ipaddress.ip_address(source)), str(ipaddress.ip_address(target))

    def close(self) -> None:
        self._last.close()


def told() -> bool:
    """Whether the kernel lets programs say where a packet came from (Linux 6.0)."""
    return b"\0local_ipv4\0" in Path("/sys/kernel/btf/vmlinux").read_bytes()


@pytest.fixture
def nodes(lab):
    if not told():
        pytest.skip("this kernel lets no program say where a packet came from (Linux 6.0)")
    hosts = lab.hosts(2)
    found = [Node(host, peer, TENANTS) for host, peer in (hosts, hosts[::-1])]
    assert hosts[0].ping(hosts[1], count=1).received == 1
    yield found
    for node in found:
        node.close()


def attach(hosts: list[Host]) -> None:
    for host in hosts:
        xmasq(host, "attach", "vx0")


def test_two_tenants(nodes):
    """With the same addresses: each in its own VNI, never in the other's; and metadata as from the driver."""
    hosts = [node.host for node in nodes]
    pairs = {vni: [node.containers[vni] for node in nodes] for vni in TENANTS}
    before = hosts[0].ip_json("-d link show vx0")
    for a, b in pairs.values():
        assert a.ping(b, count=1).received == 1
    plain = nodes[1].last
    assert plain == (2000, "192.0.2.1", "192.0.2.2")
    attach(hosts)
    assert hosts[0].ip_json("-d link show vx0") == before
    (link,) = xmasq_json(hosts[0], "link", "show")
    assert link["linkinfo"]["info_data"]["external"] is True
    assert "xmasq external local" in xmasq(hosts[0], "link", "show").stdout
    with watch(hosts[0]) as capture:
        for vni, (a, b) in pairs.items():
            talk(a, b)
            assert tcp_transfer(a, b, 1_000_000).size == 1_000_000
            assert udp_echo(a, b, count=100).lost == 0
            # The last one was an encoded packet.
            assert nodes[1].last == (vni, *plain[1:])
    assert kinds(seen(capture))["encoded"] > 200
    assert stats(hosts[0], "vx0")["error"] == stats(hosts[1], "vx0")["error"] == 0
    for host in hosts:
        assert {flow.vni for flow in host.inside(lambda: list(list_flows("vx0")))} == set(TENANTS)
        assert {key.vni for key in host.inside(lambda: list(list_keys("vx0")))} == set(TENANTS)
    for vni, (a, b) in pairs.items():
        (other,) = [others[1] for its, others in pairs.items() if its != vni]
        with other.socket() as spy, b.socket() as receiver, a.socket() as sender:
            for one, target in ((spy, other), (receiver, b)):
                one.bind((target.address, 4711))
            receiver.settimeout(2)
            for number in range(100):
                sender.sendto(f"{vni} {number}".encode(), (b.address, 4711))
                assert receiver.recv(100) == f"{vni} {number}".encode()
            spy.settimeout(0.2)
            with pytest.raises(TimeoutError):
                spy.recv(100)


def talk(a: Container, b: Container) -> None:
    """Until both directions are encoded."""

    def encoded(one: Container) -> int:
        return stats(one.host, "vx0")["encoded"]

    for one, other in ((a, b), (b, a)):
        before = encoded(one)

        def ask(one: Container = one, other: Container = other, before: int = before) -> bool:
            with one.socket() as client:
                client.sendto(b"?", (other.address, 9))
            return encoded(one) > before

        until(ask, "it is encoded")


def test_each_packet_says_where_it_goes(nodes):
    """A flow that is encoded to one peer leaves for another one as soon as its metadata say so."""
    a, b = (node.containers[1000] for node in nodes)
    host = nodes[0].host
    attach([node.host for node in nodes])
    assert a.ping(b, count=1).received == 1
    talk(a, b)
    host.ip("neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent")

    def elsewhere() -> None:
        index = socket.if_nametoindex(a.veth)
        fd = bpf.prog_load("like_cilium", to_tunnel(1000, "192.0.2.9", socket.if_nametoindex("vx0")))
        with IPRoute() as ipr:  # at the front, and it leaves nothing to the one before
            _hooks.attach(ipr, index, _hooks.INGRESS, "like_cilium", fd)
        os.close(fd)

    with a.socket() as client:
        client.sendto(b"?", (b.address, 9))
        host.inside(elsewhere)
        with watch(host) as capture:
            for _ in range(50):
                client.sendto(b"!", (b.address, 9))
    sent = [one for one in seen(capture) if one.source == host.address and one.kind != "control"]
    assert {(one.kind, one.destination) for one in sent if one.inner} == {("fallback", "192.0.2.9")}
    assert len(sent) >= 50


def test_refused(lab):
    host = lab.host()
    host.ip(
        "link add noaddr type vxlan external dstport 4789",
        "link add filter type vxlan external vnifilter local 192.0.2.1 dstport 4790",
    )
    for words, argument in (("noaddr", "local"), ("filter", "name")):
        result = xmasq(host, "attach", words, check=False)
        assert result.returncode == 2
        assert result.stderr.startswith(f"xmasq: {argument}: ")
    assert xmasq_json(host, "link", "show") == []
    if not told():
        result = xmasq(host, "attach", "noaddr", "local", "192.0.2.1", check=False)
        assert result.returncode == 2
        assert result.stderr.startswith(
            'xmasq: name: "noaddr" is in external mode, and this kernel lets no program'
        )
        assert xmasq_json(host, "link", "show") == []
        return
    xmasq(host, "attach", "noaddr", "local", "192.0.2.1")
    assert xmasq(host, "explain", "noaddr", "198.51.100.1", "198.51.100.2", check=False).returncode == 2
    assert "its programs are on their hooks" in xmasq(host, "doctor", check=False).stdout
    xmasq(host, "detach", "noaddr")


def test_detached_without_loss(nodes):
    hosts = [node.host for node in nodes]
    a, b = (node.containers[1000] for node in nodes)
    assert a.ping(b, count=1).received == 1
    for host in hosts:
        make_hookable(host, "vx0", "eth0")
    rate = round(2000 / patience(1))
    with Stream(a, b, rate=rate) as there, Stream(b, a, rate=rate) as back:
        there.wait_for(100)
        attach(hosts)
        until(lambda: stats(hosts[0], "vx0")["encoded"] > 500, "it is encoded")
        until(lambda: stats(hosts[1], "vx0")["encoded"] > 500, "it is encoded")
        for host in hosts:
            xmasq(host, "detach", "vx0")
        there.wait_for(len(there.numbers) + 500)
        back.wait_for(len(back.numbers) + 500)
    assert [(one.lost, one.duplicates) for one in (there, back)] == [(0, 0)] * 2
    for host in hosts:
        assert programs(host, "vx0").keys() == {"like_cilium"}
        assert programs(host, "eth0") == {}


def test_what_the_receiver_forgets_bounces_into_the_same_vni(nodes):
    hosts = [node.host for node in nodes]
    a, b = (node.containers[2000] for node in nodes)
    attach(hosts)
    assert a.ping(b, count=1).received == 1
    talk(a, b)
    with Stream(a, b, rate=1000) as stream:
        stream.wait_for(200)

        def bounced() -> bool:  # unless a renewal is just under way
            xmasq(hosts[1], "flush")
            return stats(hosts[0], "vx0")["restored"] > 0

        until(bounced, "a packet bounces", timeout=20)
        stream.wait_for(len(stream.numbers) + 300)
    assert (stream.lost, stream.duplicates) == (0, 0)
