# SPDX-License-Identifier: Apache-2.0
"""The host's firewall and address translation rule over encoded traffic as over any other."""

from __future__ import annotations

import socket
import time

import pytest

from tests.lab import Container, Host, Namespace, Overlay, UdpService, patience, routed_overlay, tcp_transfer

from .observe import Stream, flow, negotiate, stats, until

pytestmark = pytest.mark.e2e

SERVICE = "203.0.113.80"


class Firewall:
    """A chain where containers' packets pass: what is routed, or what a bridge forwards."""

    def __init__(self, overlay: Overlay, host: Host) -> None:
        self.host = host
        self.table = f"{'inet' if overlay.mode == 'routed' else 'bridge'} rules"
        self.nft(f"add table {self.table}")
        self.nft(f"add chain {self.table} forward {{ type filter hook forward priority 0; policy accept; }}")

    def nft(self, line: str) -> None:
        self.host.run(["nft", "-f", "-"], input=line + "\n")

    def add(self, rule: str) -> None:
        self.nft(f"add rule {self.table} forward {rule}")

    def clear(self) -> None:
        self.nft(f"flush chain {self.table} forward")


def encoded(source: Container, target: Container) -> None:
    """Fails unless what goes from one to the other is encoded now."""
    before = stats(source.host)["encoded"]
    until(lambda: flow(source, target), f"{source.name} to {target.name} is encoded")
    tcp_transfer(source, target, 200_000)
    assert stats(source.host)["encoded"] > before


def connects(source: Namespace, address: str, port: int, timeout: float = 0.5) -> bool:
    with source.socket(kind=socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        try:
            client.connect((address, port))
        except OSError:
            return False
        return True


class Server:
    """Accepts connections in a namespace; says who is there, and remembers who came."""

    def __init__(self, where: Namespace, port: int) -> None:
        self.process = where.popen(
            [
                "python3",
                "-uc",
                "import socket, sys\n"
                f"s = socket.create_server(({where.address!r}, {port}))\n"
                "while True:\n"
                "  c, a = s.accept(); print(a[0]); c.settimeout(10)\n"
                f"  c.sendall(b'{where.name}'); c.recv(9); c.close()\n",
            ]
        )
        where.wait_for_port(port)

    def came(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def ask(source: Namespace, address: str, port: int) -> str:
    """Who answers at an address."""
    with source.socket(kind=socket.SOCK_STREAM) as client:
        client.settimeout(5)
        client.connect((address, port))
        return client.recv(100).decode()


def test_a_rule_from_the_beginning(lab, make):
    """At the sender's host, and at the receiver's."""
    overlay = make(lab.hosts(2), containers=2)
    a, a2, b, b2 = sorted(overlay.containers, key=lambda one: one.name)
    for host in overlay.hosts:
        firewall = Firewall(overlay, host)
        firewall.add(f"ip saddr {a.address} ip daddr {b.address} counter drop")
        for one, other in ((a2, b), (a, b2)):
            negotiate(one, other)
            encoded(one, other)
        assert a.ping(b, count=3, wait=0.2).received == 0
        with UdpService(b, echo=False) as service, a.socket() as client:
            for _ in range(50):
                client.sendto(b"x", (b.address, service.port))
            assert b2.ping(a2, count=1).received == 1
            assert service.datagrams == 0
        # Neither way: connections need both.
        assert not connects(a, b.address, 80)
        assert not connects(b, a.address, 80)
        firewall.clear()
    negotiate(a, b)
    encoded(a, b)


def test_a_rule_in_the_middle_of_a_flow(lab, make):
    overlay = make(lab.hosts(2))
    a, b = overlay.containers
    negotiate(a, b)
    with Stream(a, b, rate=500) as stream:
        stream.wait_for(200)
        for host in overlay.hosts:
            before = stats(a.host)["encoded"]
            stream.wait_for(len(stream.numbers) + 100)
            assert stats(a.host)["encoded"] - before > 50
            firewall = Firewall(overlay, host)
            firewall.add(f"ip saddr {a.address} udp dport {stream.port} drop")
            time.sleep(0.05)  # what has passed the rule arrives
            got = len(stream.numbers)
            time.sleep(0.3)
            assert len(stream.numbers) == got
            # Of the same flow, another port passes.
            assert flow(a, b)
            assert tcp_transfer(a, b, 100_000).size == 100_000
            firewall.clear()
            stream.wait_for(got + 100)


def test_connection_tracking(lab):
    """Answers pass, connections from outside do not."""
    overlay = routed_overlay(lab.hosts(2))
    a, b = overlay.containers
    firewall = Firewall(overlay, a.host)
    firewall.add("ct state established,related accept")
    firewall.add(f"ip daddr {a.address} drop")
    Server(a, 8000)
    Server(b, 8000)
    for _ in range(3):
        assert ask(a, b.address, 8000) == b.name
        assert not connects(b, a.address, 8000, timeout=0.3)
    encoded(a, b)
    encoded(a, b)
    assert tcp_transfer(a, b, 3_000_000).size == 3_000_000
    assert not connects(b, a.address, 8000, timeout=0.3)


NAT = """\
table ip services {
  chain services {
    ip daddr %(service)s tcp dport 80 dnat to numgen inc mod 2 map { 0: %(a)s, 1: %(b)s }
  }
  chain prerouting { type nat hook prerouting priority dstnat; jump services; }
  chain output { type nat hook output priority -100; jump services; }
  chain postrouting {
    type nat hook postrouting priority srcnat;
    ct status dnat fib saddr type local masquerade
    ct status dnat ct original ip saddr %(a)s ip daddr %(a)s masquerade
    ct status dnat ct original ip saddr %(b)s ip daddr %(b)s masquerade
  }
}
"""


def test_a_service_address(lab):
    """As kube-proxy has it: connections to a service address go to its containers, on any host."""
    overlay = routed_overlay(lab.hosts(2), containers=2)
    a, client1, b, client2 = sorted(overlay.containers, key=lambda one: one.name)
    for host in overlay.hosts:
        host.run(["nft", "-f", "-"], input=NAT % {"service": SERVICE, "a": a.address, "b": b.address})
        host.ip(f"route add {SERVICE}/32 dev lo")  # a route is needed before translation
    servers = {one.name: Server(one, 80) for one in (a, b)}
    for client in (client1, client2, overlay.hosts[0], overlay.hosts[1], a, b):
        # Each connection to the next of both, wherever the client is.
        answers = [ask(client, SERVICE, 80) for _ in range(4)]
        assert sorted(answers) == sorted([a.name, b.name] * 2)
        for name in answers:
            source = servers[name].came()
            if client in (client1, client2):
                assert source == client.address
    for client, remote in ((client1, b), (client2, a)):
        negotiate(client, remote)
        encoded(client, remote)
        encoded(remote, client)
    # Long enough to be encoded, through the translation, both ways.
    before = [stats(host) for host in overlay.hosts]
    for client in (client1, client2):
        until(lambda client=client: ask(client, SERVICE, 80), "an answer")
    for remote, port in ((b, 8081), (a, 8081)):
        source = client1 if remote is b else client2
        rule = f"ip daddr {SERVICE} tcp dport 81 dnat to {remote.address}:{port}"
        source.host.run(f"nft add rule ip services services {rule}")
        transfer_through(source, remote, port, 3_000_000)
    for host, old in zip(overlay.hosts, before, strict=True):
        new = stats(host)
        assert new["encoded"] - old["encoded"] > 100
        assert new["bounced"] == new["error"] == 0


def transfer_through(source: Container, target: Container, port: int, size: int) -> None:
    """A transfer to SERVICE:81 that arrives at target, both ways at a time."""
    import threading

    got: list[int] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            count = 0
            while data := connection.recv(1 << 18):
                connection.sendall(data)
                count += len(data)
            got.append(count)

    with target.socket(kind=socket.SOCK_STREAM) as listener, source.socket(kind=socket.SOCK_STREAM) as client:
        listener.bind((target.address, port))
        listener.listen(1)
        listener.settimeout(20)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        client.settimeout(20)
        client.connect((SERVICE, 81))
        back = 0
        block = bytes(range(256)) * 256
        sent = 0
        while sent < size:
            client.sendall(block)
            sent += len(block)
            left = len(block)
            while left:
                data = client.recv(left)
                assert data
                left -= len(data)
                back += len(data)
        client.shutdown(socket.SHUT_WR)
        thread.join(timeout=patience(20))
    assert got == [sent]
    assert back == sent


def test_masquerade_to_the_outside(lab):
    """What leaves the network has the host's address, and answers come back; within it nothing changes."""
    hosts = lab.hosts(3)
    outside = hosts.pop()
    overlay = routed_overlay(hosts)
    a, b = overlay.containers
    for host in hosts:
        host.run(
            ["nft", "-f", "-"],
            input="table ip masq { chain postrouting { type nat hook postrouting priority srcnat;"
            ' ip saddr 198.51.100.0/24 oifname "eth0" masquerade; }; }\n',
        )
    server = Server(outside, 80)
    for one in (a, b):
        assert ask(one, outside.address, 80) == outside.name
        assert server.came() == one.host.address
        assert tcp_transfer(one, outside, 1_000_000).size == 1_000_000
    inner = Server(b, 80)
    assert ask(a, b.address, 80) == b.name
    assert inner.came() == a.address
    negotiate(a, b)
    encoded(a, b)
