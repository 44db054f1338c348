# SPDX-License-Identifier: Apache-2.0
"""A container's own tunnel through an xmasq link."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

import xmasq_link
from tests.lab import Lab, patience, routed_overlay

pytestmark = pytest.mark.e2e


def test_a_containers_vxlan_keeps_its_udp_checksum():
    """Its UDP checksum is complete while the innermost one is still due: a state of its own.

    Without checksum offload on the underlay both are on the wire, and the container's kernel checks them.
    """
    with Lab() as lab:
        hosts = lab.hosts(2)
        for host in hosts:
            host.offloads(tx=False)
        a, b = routed_overlay(hosts, kind="xmasq").containers
        for one, other, number in ((a, b, 1), (b, a, 2)):
            one.ip(
                f"link add n0 mtu 1300 type vxlan id 7 dstport 4790 local {one.address}"
                f" remote {other.address} udpcsum dev eth0",
                f"addr add 203.0.113.{number}/24 dev n0",
                "link set n0 up",
            )
        with (
            b.socket(kind=socket.SOCK_STREAM) as listener,
            a.socket(kind=socket.SOCK_STREAM) as client,
        ):
            listener.bind(("203.0.113.2", 9000))
            listener.listen(1)
            listener.settimeout(patience(10))
            client.settimeout(patience(10))
            client.connect(("203.0.113.2", 9000))
            server, _ = listener.accept()
            with server:
                server.settimeout(patience(10))
                for number in range(30):
                    client.sendall(bytes([number]) * 40)
                    got = b""
                    while len(got) < 40:
                        got += server.recv(40 - len(got))
                    assert got == bytes([number]) * 40
                    server.sendall(got)
                    assert client.recv(40)
        snmp = b.inside(Path("/proc/thread-self/net/snmp").read_text)
        names, values = (line.split() for line in snmp.splitlines() if line.startswith("Udp:"))
        assert dict(zip(names, values, strict=True))["InCsumErrors"] == "0"
        assert hosts[0].inside(lambda: xmasq_link.links("xm0")[0].stats["encoded"]) > 20
