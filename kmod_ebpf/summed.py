# SPDX-License-Identifier: GPL-2.0-only
"""How programs read skb->ip_summed, where the kernel lets them (src/csum.h, ip_summed).

No helper says who is to see to a packet's checksum. Since Linux 6.2 bpf_cast_to_kern_ctx() gives a program
the struct sk_buff behind its context, at no cost: the verifier makes a register move of the call. What call
and load have to say, the kernel's own type information (BTF) has. Elsewhere a program is told that the answer
is CHECKSUM_COMPLETE, for which it asks the helper.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import json
import os
import struct
from pathlib import Path

from . import bpf, cache

#: What the compiled text has in the place of the function, and of the field's mask (src/csum.h).
_PLACE = 0x786D6971
_CALL, _AND, _RSH, _LOAD, _MOV, _EXIT = 0x85, 0x57, 0x77, 0x71, 0xB7, 0x95
_KFUNC = 2 << 4  # BPF_PSEUDO_KFUNC_CALL, in the place of the source register
_COMPLETE = 2
_TYPES = Path("/sys/kernel/btf/vmlinux")
_NOTES = Path("/sys/kernel/notes")
_BUILD_ID = struct.pack("<III4s", 4, 20, 3, b"GNU")  # the head of an ELF note with one
_STRUCT, _UNION, _FUNC = 4, 5, 12


@dataclasses.dataclass(frozen=True)
class Field:
    """Where ip_summed is. cast: BTF id of the function; offset: of the byte; mask, shift: within it."""

    cast: int
    offset: int
    mask: int
    shift: int


class _Type(ctypes.Structure):
    """struct btf_type, without what follows it (uapi/linux/btf.h)."""

    _fields_ = (("name", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size", ctypes.c_uint32))


class _Member(ctypes.Structure):
    """struct btf_member."""

    _fields_ = (("name", ctypes.c_uint32), ("type", ctypes.c_uint32), ("offset", ctypes.c_uint32))


def _library() -> ctypes.CDLL:
    """libbpf. On Debian, BCC needs it, too. Raises OSError."""
    lib = ctypes.CDLL("libbpf.so.1")
    lib.btf__parse_raw.restype = ctypes.c_void_p
    lib.btf__free.argtypes = [ctypes.c_void_p]
    lib.btf__free.restype = None
    lib.btf__find_by_name_kind.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32]
    lib.btf__type_by_id.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    lib.btf__type_by_id.restype = ctypes.c_void_p
    lib.btf__name_by_offset.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    lib.btf__name_by_offset.restype = ctypes.c_char_p
    return lib


def _member(lib: ctypes.CDLL, btf: int, id_: int, name: bytes, base: int = 0) -> tuple[int, int] | None:
    """First bit and number of bits of a bit field in a structure, or in those without a name within it."""
    at = lib.btf__type_by_id(btf, id_)
    if not at:
        return None
    info = _Type.from_address(at).info
    if info >> 24 & 0x1F not in (_STRUCT, _UNION):
        return None
    fields = info >> 31  # kind_flag: offsets have the number of bits above them
    for m in (_Member * (info & 0xFFFF)).from_address(at + ctypes.sizeof(_Type)):
        bit, bits = (m.offset & 0xFFFFFF, m.offset >> 24) if fields else (m.offset, 0)
        if not m.name:
            found = _member(lib, btf, m.type, name, base + bit)
            if found:
                return found
        elif lib.btf__name_by_offset(btf, m.name) == name:
            return base + bit, bits
    return None


def _look() -> Field | None:
    """Looks in the kernel's type information, which takes some 15 ms.

    None if there is no such function or field. Raises OSError without type information or libbpf.
    """
    if not _TYPES.exists():
        raise FileNotFoundError(_TYPES)
    lib = _library()
    btf = lib.btf__parse_raw(os.fsencode(_TYPES))
    if not btf:
        return None
    try:
        cast = lib.btf__find_by_name_kind(btf, b"bpf_cast_to_kern_ctx", _FUNC)
        skb = lib.btf__find_by_name_kind(btf, b"sk_buff", _STRUCT)
        place = _member(lib, btf, skb, b"ip_summed") if cast > 0 and skb > 0 else None
    finally:
        lib.btf__free(btf)
    if place is None:
        return None
    shift, bits = place[0] % 8, place[1]
    if bits != 2 or shift + bits > 8:
        return None
    return Field(cast, place[0] // 8, 3 << shift, shift)


def _kept(directory: Path) -> Path | None:
    """The file that keeps what was found for this very kernel; None if there is nothing to know it by."""
    try:
        notes = _NOTES.read_bytes()
        size = _TYPES.stat().st_size
    except OSError:
        return None
    if _BUILD_ID not in notes:
        return None
    key = hashlib.sha256(notes + b"%d" % size + Path(__file__).read_bytes()).hexdigest()
    return directory / f"{key}-ip_summed.json"


def _find(directory: Path | None) -> Field | None:
    file = _kept(directory) if directory else None
    if file:
        try:
            found = json.loads(cache.read(file) or "")
            return Field(**found) if found else None
        except (ValueError, TypeError):
            pass
    try:
        field = _look()
    except OSError:
        return None
    if file:
        cache.write(file, json.dumps(dataclasses.asdict(field) if field else None))
    return field


@functools.cache
def field(directory: Path | None = cache.DIRECTORY) -> Field | None:
    """The field, if this kernel takes a program that reads it; else None.

    directory: where what was found is kept. With XMASQ_IP_SUMMED=0 in the environment, for tests, it is None.
    """
    if os.environ.get("XMASQ_IP_SUMMED") == "0":
        return None
    found = _find(directory)
    if found:
        code = bytearray()
        for op in (_CALL, _LOAD, _AND, _RSH, _EXIT):
            code += struct.pack("<BBhi", op, 0, 0, _PLACE if op in (_CALL, _AND) else 0)
        patch(code, found)
        try:
            os.close(bpf.prog_load("xmasq_trial", bytes(code)))
        except OSError:
            return None
    return found


def wanted(insns: bytearray) -> bool:
    """Does a compiled program want to read the field?"""
    return struct.pack("<BBhi", _CALL, 0, 0, _PLACE) in insns


def patch(insns: bytearray, found: Field | None) -> None:
    """Has a compiled program read the field, or be told CHECKSUM_COMPLETE."""
    for at in range(0, len(insns), 8):
        op, regs, _, imm = struct.unpack_from("<BBhi", insns, at)
        if imm != _PLACE:
            continue
        if op == _CALL:
            new = (_CALL, _KFUNC, 0, found.cast) if found else (_MOV, 0, 0, 0)
            struct.pack_into("<BBhi", insns, at, *new)
        elif op == _AND:  # between the load and the shift, with the same register
            load = struct.unpack_from("<BB", insns, at - 8)
            assert load[0] == _LOAD
            if found:
                struct.pack_into("<BBhi", insns, at - 8, *load, found.offset, 0)
                struct.pack_into("<i", insns, at + 4, found.mask)
                struct.pack_into("<i", insns, at + 12, found.shift)
            else:
                struct.pack_into("<BBhi", insns, at - 8, _MOV, regs, 0, _COMPLETE)
                struct.pack_into("<i", insns, at + 4, 3)
