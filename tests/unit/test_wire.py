# SPDX-License-Identifier: Apache-2.0
"""The wire format: Python's view of it, and that C and Python agree."""

from __future__ import annotations

import dataclasses

import pytest

from tests.unit.c import refuted
from xmasq_link import _wire as wire

EXAMPLE = wire.Control(
    type=wire.ACCEPT,
    vni=0x00ABCDEF,
    smac="02:aa:bb:cc:dd:01",
    dmac="02:aa:bb:cc:dd:02",
    sip="10.1.2.3",
    dip="10.4.5.6",
    dscp=0x2E,
    variant=wire.VAR_NODF,
    key=0x01020304,
    lease_ms=0x11121314,
    nonce_a=0x21222324,
    nonce_b=0x31323334,
    auth=0x4142434445464748,
    flags=wire.CTL_USED | 2,
    seg_bits=6,
)

# Offsets in the UDP payload; all numbers in network order but the authenticator, which is
# little endian.
LAYOUT = """
     0  00                         flags of the VXLAN header: I is clear
     1  00 00 00 00 00 00 00       rest of the VXLAN header
     8  01                         version
     9  02                         type
    10  82                         flags
    11  06                         S
    12  00 ab cd ef                VNI
    16  02 aa bb cc dd 01          source MAC
    22  02 aa bb cc dd 02          destination MAC
    28  0a 01 02 03                source address
    32  0a 04 05 06                destination address
    36  2e                         DSCP
    37  01                         variant
    38  00 00                      reserved
    40  01 02 03 04                key
    44  11 12 13 14                lease
    48  21 22 23 24                nonce of the sender
    52  31 32 33 34                nonce of the receiver
    56  48 47 46 45 44 43 42 41    authenticator
"""


EXAMPLE6 = dataclasses.replace(
    EXAMPLE, sip="2001:db8::1:2", dip="2001:db8::3:4", key=17, variant=0, seg_bits=0, flags=0
)

# Over IPv6 the addresses are longer; the rest is the same, further back.
LAYOUT6 = """
     0  00                         flags of the VXLAN header: I is clear
     1  00 00 00 00 00 00 00       rest of the VXLAN header
     8  01                         version
     9  02                         type
    10  00                         flags
    11  00                         S
    12  00 ab cd ef                VNI
    16  02 aa bb cc dd 01          source MAC
    22  02 aa bb cc dd 02          destination MAC
    28  20 01 0d b8 00 00 00 00 00 00 00 00 00 01 00 02    source address
    44  20 01 0d b8 00 00 00 00 00 00 00 00 00 03 00 04    destination address
    60  2e                         DSCP
    61  00                         variant
    62  00 00                      reserved
    64  00 00 00 11                key
    68  11 12 13 14                lease
    72  21 22 23 24                nonce of the sender
    76  31 32 33 34                nonce of the receiver
    80  48 47 46 45 44 43 42 41    authenticator
"""


def layout(text: str = LAYOUT) -> list[tuple[int, bytes]]:
    """A layout as offsets and bytes."""
    rows = []
    for line in text.strip().splitlines():
        offset, rest = line.strip().split("  ", 1)
        rows.append((int(offset), bytes.fromhex(rest.strip().split("   ")[0])))
    return rows


def test_every_offset_of_the_control_payload() -> None:
    packed = EXAMPLE.pack()
    assert len(packed) == wire.CTL_LEN == 64
    for offset, expected in layout():
        assert packed[offset : offset + len(expected)] == expected, f"at {offset}"
    assert b"".join(expected for _, expected in layout()) == packed
    assert [offset for offset, _ in layout()] == list(wire.CTL_OFFSETS.values())


def test_every_offset_over_ipv6() -> None:
    packed = EXAMPLE6.pack()
    assert len(packed) == wire.CTL_LEN6 == 88
    assert b"".join(expected for _, expected in layout(LAYOUT6)) == packed
    assert [offset for offset, _ in layout(LAYOUT6)] == list(wire.CTL_OFFSETS6.values())
    assert wire.Control.unpack(packed + b"padding", 6) == EXAMPLE6
    with pytest.raises(ValueError, match="88 bytes, this one 87"):
        wire.Control.unpack(packed[:-1], 6)


def test_key_in_an_ipv6_header() -> None:
    assert wire.key6(1) == 0x00011
    assert wire.key6(0xABCD) == 0xABCD << 4 | 0xA ^ 0xB ^ 0xC ^ 0xD
    assert wire.first_word(wire.key6(1)) == 0x60C00011  # version 6, traffic class 0c, label 00011
    assert wire.first_word(wire.key6(1), wire.BOUNCE, ecn=3) == 0x61F00011
    keys = {wire.key6(index) for index in range(1, 1 << 16)}
    assert len(keys) == 0xFFFF
    assert 0 not in keys
    # A bit that flips, or all four of a digit, make no other key.
    for index in (1, 2, 0x1234, 0xFFFF):
        for digit in range(0, 20, 4):
            assert not {wire.key6(index) ^ damage << digit for damage in range(1, 16)} & keys


def test_c_has_the_same_numbers_for_ipv6() -> None:
    claims = {"sizeof(struct ctl)": wire.CTL_LEN6, "__builtin_offsetof(struct ctl_frame, ctl)": 48}
    for name, offset in wire.CTL_OFFSETS6.items():
        claims[f"__builtin_offsetof(struct ctl, {name})"] = offset
    assert refuted(claims, 6) == []


def test_unpack_is_the_inverse_and_ignores_the_rest() -> None:
    assert wire.Control.unpack(EXAMPLE.pack()) == EXAMPLE
    assert wire.Control.unpack(EXAMPLE.pack() + b"padding") == EXAMPLE


def test_unpack_refuses_too_few_bytes() -> None:
    with pytest.raises(ValueError, match="64 bytes, this one 63"):
        wire.Control.unpack(EXAMPLE.pack()[:-1])


@pytest.mark.parametrize(
    ("field", "value"),
    [("vni", 1 << 32), ("key", -1), ("dscp", 256), ("auth", 1 << 64), ("smac", "02:00"), ("sip", "::1")],
)
def test_pack_refuses_what_does_not_fit(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        dataclasses.replace(EXAMPLE, **{field: value}).pack()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        # The reference vectors for keys 00 01 … 0f and messages 00 01 02 …
        (0, "310e0edd47db6f72"),
        (1, "fd67dc93c539f874"),
        (2, "5a4fa9d909806c0d"),
        (7, "37d1018bf50002ab"),
        (8, "6224939a79f5f593"),
        (15, "e545be4961ca29a1"),  # the one worked out in the paper, appendix A
        (63, "724506eb4c328a95"),
    ],
)
def test_siphash_reference_vectors(length: int, expected: str) -> None:
    value = wire.siphash(bytes(range(length)), bytes(range(16)))
    assert value.to_bytes(8, "little").hex() == expected


def test_siphash_wants_a_whole_key() -> None:
    with pytest.raises(ValueError, match="16 bytes, not 15"):
        wire.siphash(b"", bytes(15))


def test_the_authenticator_covers_all_but_itself() -> None:
    def auth(c: wire.Control = EXAMPLE, src: str = "192.0.2.1", dst: str = "192.0.2.2") -> int:
        return c.authenticator(src, dst, bytes(16))

    assert auth(dataclasses.replace(EXAMPLE, auth=0)) == auth()
    assert EXAMPLE.sealed("192.0.2.1", "192.0.2.2", bytes(16)).auth == auth()
    others = {auth(src="192.0.2.3"), auth(dst="192.0.2.3"), auth(src="192.0.2.2", dst="192.0.2.1")}
    packed = EXAMPLE.pack()
    for i in range(wire.CTL_OFFSETS["auth"]):
        changed = packed[:i] + bytes([packed[i] ^ 1]) + packed[i + 1 :]
        others.add(auth(wire.Control.unpack(changed)))
    assert len(others) == 3 + 56
    assert auth() not in others
    assert EXAMPLE.authenticator("192.0.2.1", "192.0.2.2", bytes(15) + b"\1") not in {*others, auth()}


@pytest.mark.parametrize(
    ("key", "seg_bits", "ident", "dscp"),
    [
        (1, 6, 64, 3),
        (1023, 6, 0xFFC0, 3),
        (1024, 6, 0, 11),
        (8191, 6, 0xFFC0, 59),
        (255, 8, 0xFF00, 3),
        (256, 8, 0, 11),
        (1, 4, 16, 3),
    ],
)
def test_key_in_a_header(key: int, seg_bits: int, ident: int, dscp: int) -> None:
    assert wire.wire_id(key, seg_bits) == ident
    assert wire.wire_dscp(key, wire.MARK, seg_bits) == dscp
    assert wire.wire_dscp(key, wire.BOUNCE, seg_bits) == dscp + 4
    last_segment = ident + (1 << seg_bits) - 1
    assert wire.wire_key(ident, dscp, wire.MARK, seg_bits) == key
    assert wire.wire_key(last_segment, dscp, wire.MARK, seg_bits) == key
    assert wire.wire_key(ident, dscp + 4, wire.BOUNCE, seg_bits) == key


def test_how_many_keys_there_are() -> None:
    assert [(1 << wire.key_bits(6, x)) - 1 for x in range(4)] == [1023, 2047, 4095, 8191]


def test_which_dscp_is_ours() -> None:
    def ours(base: int, xbits: int) -> list[int]:
        return [d for d in range(64) if wire.dscp_is(d, base, xbits)]

    assert ours(wire.MARK, 0) == [3]
    assert ours(wire.BOUNCE, 0) == [7]
    assert ours(wire.MARK, 1) == [3, 11]
    assert ours(wire.BOUNCE, 3) == [7, 15, 23, 31, 39, 47, 55, 63]


def test_c_has_the_same_numbers() -> None:
    claims = {
        "XM_VERSION": wire.VERSION,
        "XM_OFFER": wire.OFFER,
        "XM_ACCEPT": wire.ACCEPT,
        "XM_CONFIRM": wire.CONFIRM,
        "XM_CTL_XBITS": wire.CTL_XBITS,
        "XM_CTL_USED": wire.CTL_USED,
        "XM_VAR_NODF": wire.VAR_NODF,
        "XM_NODF_MAX": wire.NODF_MAX,
        "XM_MIN_TTL": wire.MIN_TTL,
        "VXLAN_FLAG_I": wire.VXLAN_FLAG_I,
        "IP_DF": wire.IP_DF,
        "sizeof(struct ctl)": wire.CTL_LEN,
        "__builtin_offsetof(struct ctl_frame, ctl)": 28,
    }
    for name, offset in wire.CTL_OFFSETS.items():
        claims[f"__builtin_offsetof(struct ctl, {name})"] = offset
    assert refuted(claims) == []


def test_a_wrong_number_would_be_found() -> None:
    claims = {"XM_VERSION": wire.VERSION, "XM_MIN_TTL": 17, "sizeof(struct ctl)": 68}
    assert refuted(claims) == ["XM_MIN_TTL", "sizeof(struct ctl)"]
