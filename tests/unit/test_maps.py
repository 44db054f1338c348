# SPDX-License-Identifier: Apache-2.0
"""The structures of the maps: that C and Python agree."""

from __future__ import annotations

import ctypes
import random

import pytest

from kmod_ebpf import maps as m
from tests.unit.c import refuted
from tests.unit.harness import Bench

C_NAMES = {
    m.Conf: "conf",
    m.Link: "link",
    m.VniKey: "vni_key",
    m.Vtep: "vtep",
    m.Underlay: "underlay",
    m.Flow: "flow",
    m.Entry: "entry",
    m.Solicit: "solicit",
    m.Pending: "pending",
    m.TxkeyKey: "txkey_key",
    m.Txkey: "txkey",
    m.Slot: "slot",
    m.Block: "block",
    m.PairKey: "pair_key",
    m.Pair: "pair",
    m.Grant: "grant",
    m.MacKey: "mac_key",
    m.MacSeen: "mac_seen",
    m.Big: "big",
    m.Hop: "hop",
    m.Scratch: "scratch",
    m.Pool: "pool",
    m.Frame: "frame",
    m.Event: "event",
    m.CountedKey: "counted_key",
}


#: Those with addresses in them are others for an IPv6 underlay.
C_NAMES6 = {getattr(m, f"{python.__name__}6", python): c for python, c in C_NAMES.items()}
NAMES = {4: C_NAMES, 6: C_NAMES6}


def test_no_structure_is_left_out() -> None:
    declared = {t for t in vars(m).values() if isinstance(t, type) and issubclass(t, m.Struct)}
    # The last ones are no structures in C.
    assert declared == {*C_NAMES, *C_NAMES6, m.Struct, m.U64, m.Address6}
    for family, layout in m.LAYOUTS.items():
        others = {m.U64, m.Address6}
        assert {t for pair in layout.values() for t in pair if t} <= {*NAMES[family], *others}
        assert {m.TYPES[family].Flow, m.TYPES[family].Txkey} <= {*NAMES[family]}


@pytest.mark.parametrize("family", [4, 6])
def test_sizes_and_offsets(family: int) -> None:
    claims = {}
    for python, c in NAMES[family].items():
        claims[f"sizeof(struct {c})"] = ctypes.sizeof(python)
        for name, *_ in python._fields_:
            place = getattr(python, name)
            claims[f"__builtin_offsetof(struct {c}, {name})"] = place.offset
            claims[f"sizeof(((struct {c} *)0)->{name})"] = place.size
    assert refuted(claims, family) == []


def test_constants_and_order_of_the_counters() -> None:
    names = [name for name in vars(m) if name.startswith(("LINK_", "FRAME_"))] + [
        "BLOCK_KEYS",
        "PAIR_BLOCKS",
        "LINK_UNDERLAYS",
        "VNI_ANY",
        "MAX_EXTERNAL",
        "WHERE_EXTERNAL",
    ]
    claims = {name: getattr(m, name) for name in names}
    assert refuted({"PAIR_BLOCKS": m.PAIR_BLOCKS6}, 6) == []
    claims["XM_VAR_NODF"] = m.VAR_NODF
    claims |= {f"C_{name.upper()}": i for i, name in enumerate(m.COUNTERS)}
    claims["C_MAX"] = len(m.COUNTERS)
    claims |= {f"EV_{name.upper()}": i for i, name in enumerate(m.EVENT_KINDS, 1)}
    assert refuted(claims) == []


@pytest.mark.root
def test_the_loaded_maps_have_these_sizes(net: Bench) -> None:
    for name, types in m.LAYOUT.items():
        opened = net.a.dp.maps[name]
        key, value = (ctypes.sizeof(t) if t else 4 for t in types)
        assert (opened.key_size, opened.value_size) == (key, value), name
    assert set(net.a.dp.maps) == {*m.LAYOUT, "stats"}
    assert net.a.dp.maps["stats"].value_size == 8 * len(m.COUNTERS)


def test_a_reader_takes_out_what_parse_has() -> None:
    for structure in (m.Flow, m.Flow6, m.Entry, m.Entry6, m.Slot, m.Link):
        raw = bytes(random.Random(5).randbytes(ctypes.sizeof(structure)))
        names = [field[0] for field in structure._fields_][1::2]
        whole = structure.parse(raw)
        wanted = [getattr(whole, name) for name in names]
        assert structure.reader(*names)(raw) == tuple(x if isinstance(x, int) else bytes(x) for x in wanted)
