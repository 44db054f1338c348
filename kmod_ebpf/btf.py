# SPDX-License-Identifier: GPL-2.0-only
"""The little type information that a map with a bpf_spin_lock needs (Documentation/bpf/btf.rst)."""

from __future__ import annotations

import struct

_MAGIC = 0xEB9F
_KIND_INT, _KIND_STRUCT = 1, 4


def spin_lock_value(size: int) -> tuple[bytes, int, int]:
    """Type data for a map with u32 keys whose values begin with a bpf_spin_lock.

    size: of the value in bytes, a multiple of 4. Returns the blob and the ids of the key's and the
    value's type.
    """
    strings = bytearray(b"\0")

    def string(text: str) -> int:
        at = len(strings)
        strings.extend(text.encode() + b"\0")
        return at

    def head(name: str, kind: int, members: int, bytes_: int) -> bytes:
        return struct.pack("<III", string(name), kind << 24 | members, bytes_)

    def member(name: str, type_: int, bit: int) -> bytes:
        return struct.pack("<III", string(name), type_, bit)

    words = size // 4 - 1
    types = head("u32", _KIND_INT, 0, 4) + struct.pack("<I", 32)
    types += head("bpf_spin_lock", _KIND_STRUCT, 1, 4) + member("val", 1, 0)
    types += head("value", _KIND_STRUCT, 1 + words, size) + member("lock", 2, 0)
    for i in range(words):
        types += member(f"w{i}", 1, 32 * (i + 1))
    header = struct.pack("<HBBIIIII", _MAGIC, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + types + bytes(strings), 1, 3
