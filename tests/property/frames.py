# SPDX-License-Identifier: Apache-2.0
"""Frames of all sorts: most of them almost right."""

from __future__ import annotations

import ipaddress
import struct
from typing import TypeVar

from hypothesis import strategies as st

from tests.unit.harness import checksum, raw_mac
from tests.unit.packets import B_MAC, CONTAINER_MAC

T = TypeVar("T")


def mostly(usual: st.SearchStrategy[T], other: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    """Nine times out of ten the usual."""
    return st.integers(0, 9).flatmap(lambda n: other if n == 9 else usual)


macs = mostly(
    st.sampled_from([B_MAC, CONTAINER_MAC]).map(raw_mac),
    st.one_of(
        st.sampled_from(["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"]).map(raw_mac),
        st.binary(min_size=6, max_size=6),
    ),
)
ethertypes = mostly(
    st.just(0x0800),
    st.one_of(st.sampled_from([0x0806, 0x86DD, 0x8100, 0x88A8, 0x88B5, 0x0026]), st.integers(0, 0xFFFF)),
)
protocols = mostly(st.sampled_from([6, 17, 33, 136, 1, 132, 50]), st.integers(0, 255))
addresses = mostly(
    st.sampled_from(["10.0.0.1", "10.0.1.1", "192.0.2.1", "192.0.2.2"]).map(
        lambda text: ipaddress.IPv4Address(text).packed
    ),
    st.binary(min_size=4, max_size=4),
)
#: Flags and fragment offset: mostly DF, or nothing.
fragments = mostly(
    st.sampled_from([0x4000, 0x4000, 0]),
    st.one_of(st.sampled_from([0x2000, 0x6000, 0x8000, 0xC000]), st.integers(0, 0xFFFF)),
)
ttls = mostly(st.sampled_from([64, 16, 255]), st.integers(0, 255))
#: IPv4 payloads; ports of the tunnel among them.
payloads = st.one_of(
    st.binary(max_size=64),
    st.binary(min_size=18, max_size=300),
    st.builds(
        lambda ports, rest: ports + rest,
        st.sampled_from([b"\x12\xb5\x12\xb5", b"\x80\x00\x12\xb5", b"\x12\xb5\x00\x35"]),
        st.binary(max_size=100),
    ),
    st.integers(1200, 1600).map(lambda n: bytes(i & 0xFF for i in range(n))),
)


@st.composite
def ipv4_packets(
    draw: st.DrawFn,
    src: st.SearchStrategy[bytes] = addresses,
    dst: st.SearchStrategy[bytes] = addresses,
    tos: st.SearchStrategy[int] | None = None,
    right: bool = False,
) -> bytes:
    """An IPv4 packet. right: with lengths and header checksum that fit."""
    payload = draw(payloads)
    odd = not right and draw(st.integers(0, 9)) == 9
    version = draw(st.integers(0, 255)) if odd else 0x45
    length = draw(st.integers(0, 0xFFFF)) if odd else 20 + len(payload)
    head = struct.pack(
        "!BBHHHBBH4s4s",
        version,
        draw(tos if tos is not None else st.integers(0, 255)),
        length,
        draw(st.one_of(st.integers(0, 0xFFFF), st.sampled_from([0, 63, 64, 65, 128]))),
        draw(fragments),
        draw(ttls),
        draw(protocols),
        0,
        draw(src),
        draw(dst),
    )
    wrong = not right and draw(st.integers(0, 9)) == 9
    value = draw(st.integers(0, 0xFFFF)) if wrong else checksum(head)
    return head[:10] + value.to_bytes(2, "big") + head[12:] + payload


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """An Ethernet frame. What claims to be IP is as long as its header, as the test run demands."""
    kind = draw(ethertypes)
    if kind == 0x0800:
        body = draw(mostly(ipv4_packets(), st.binary(min_size=20, max_size=200)))
    else:
        body = draw(st.binary(min_size=40 if kind == 0x86DD else 0, max_size=200))
    return draw(macs) + draw(macs) + kind.to_bytes(2, "big") + body
