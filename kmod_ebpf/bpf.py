# SPDX-License-Identifier: GPL-2.0-only
"""The bpf(2) system call, as far as xmasq needs it (layouts: uapi/linux/bpf.h, union bpf_attr).

Nothing here needs BCC or LLVM, so a command that only reads or changes maps stays small.
All functions raise OSError with the kernel's errno; file descriptors they return are close-on-exec.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_libc = ctypes.CDLL(None, use_errno=True)

MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_NEXT, PROG_LOAD = 0, 1, 2, 3, 4, 5
PROG_ATTACH, PROG_DETACH, PROG_QUERY = 8, 9, 16
PROG_TEST_RUN, PROG_FD_BY_ID, MAP_FD_BY_ID, OBJ_INFO = 10, 13, 14, 15
BTF_LOAD, MAP_LOOKUP_BATCH, ENABLE_STATS = 18, 24, 32

PROG_TYPE_SCHED_CLS = 3
TCX_INGRESS, TCX_EGRESS = 46, 47  # enum bpf_attach_type, Linux 6.6
ANY, NOEXIST, EXIST = 0, 1, 2

_PERCPU_TYPES = frozenset({5, 6, 10})
_ATTR_SIZE = 160


def _call(cmd: int, attr: bytearray | ctypes.Structure) -> int:
    nr = _SYSCALL.get(platform.machine())
    if nr is None:
        raise OSError(errno.ENOSYS, f"bpf(2) is not known on {platform.machine()}")
    if isinstance(attr, bytearray):
        buf: object = (ctypes.c_char * len(attr)).from_buffer(attr)
        size = len(attr)
    else:
        buf, size = attr, ctypes.sizeof(attr)
    ret = _libc.syscall(nr, cmd, ctypes.byref(buf), size)  # type: ignore[arg-type]
    if ret < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(ret)


def _create(attr: _Attr, cmd: int, size: int) -> int:
    """A command that makes something. Returns its fd.

    Before Linux 5.11 BPF memory counts as locked, and the usual limit of that is far below what the
    maps take; the kernel says EPERM then. Root may raise the limit, and only there is it raised.
    """
    try:
        return attr.call(cmd, size)
    except OSError as e:
        if e.errno != errno.EPERM:
            raise
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        if resource.getrlimit(resource.RLIMIT_MEMLOCK) == unlimited:
            raise
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
        except (ValueError, OSError):
            raise e from None
        return attr.call(cmd, size)


class _Attr:
    """A zeroed bpf_attr that is filled by offset and keeps alive what it points to."""

    def __init__(self) -> None:
        self.raw = bytearray(_ATTR_SIZE)
        self._alive: list[object] = []

    def put(self, offset: int, value: int, size: int = 4) -> None:
        self.raw[offset : offset + size] = value.to_bytes(size, "little")

    def pointer(self, offset: int, data: bytes | bytearray | ctypes.Array[ctypes.c_char]) -> None:
        buf = data if isinstance(data, ctypes.Array) else ctypes.create_string_buffer(bytes(data), len(data))
        self._alive.append(buf)
        self.put(offset, ctypes.addressof(buf), 8)

    def get(self, offset: int, size: int = 4) -> int:
        return int.from_bytes(self.raw[offset : offset + size], "little")

    def call(self, cmd: int, size: int = _ATTR_SIZE) -> int:
        part = self.raw[:size]
        try:
            return _call(cmd, part)
        finally:
            self.raw[:size] = part  # some commands report in it, even with an error


def _name(text: str) -> bytes:
    return text.encode()[:15].ljust(16, b"\0")


def possible_cpus() -> int:
    """Number of possible CPUs: per-CPU values come in so many copies (cpumask(9))."""
    with open("/sys/devices/system/cpu/possible") as f:
        last = f.read().strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1


def btf_load(blob: bytes) -> int:
    """Loads type information; returns its fd."""
    attr = _Attr()
    attr.pointer(0, blob)
    attr.put(16, len(blob))
    return _create(attr, BTF_LOAD, 28)


def prog_load(name: str, insns: bytes, licence: str = "GPL") -> int:
    """Loads a tc classifier; returns its fd. The verifier's log is the OSError's second argument."""
    attr = _Attr()
    attr.put(0, PROG_TYPE_SCHED_CLS)
    attr.put(4, len(insns) // 8)
    attr.pointer(8, insns)
    attr.pointer(16, licence.encode() + b"\0")
    attr.raw[48:64] = _name(name)
    for _ in range(5):
        try:
            return _create(attr, PROG_LOAD, 120)
        except OSError as e:
            if e.errno in (errno.EPERM, errno.ENOSYS):
                raise
            if e.errno != errno.EAGAIN:  # a signal was pending (kernel/bpf/verifier.c)
                break
    log = ctypes.create_string_buffer(1 << 22)
    attr.put(24, 1)
    attr.put(28, len(log))
    attr.pointer(32, log)
    try:
        return _create(attr, PROG_LOAD, 120)
    except OSError as e:
        raise OSError(e.errno, log.value.decode(errors="replace") or e.strerror) from None


@dataclass(frozen=True)
class Run:
    """Result of a test run: the program's return value, the packet after it, and its context."""

    retval: int
    data: bytes
    ctx: bytes


#: The packet has CHECKSUM_COMPLETE, and the kernel looks whether that is right afterwards (Linux 6.11).
#: If it is not, the run fails with EBADMSG.
TEST_COMPLETE = 4


def prog_test_run(fd: int, data: bytes, ctx: bytes = b"", room: int = 1024, flags: int = 0) -> Run:
    """BPF_PROG_TEST_RUN once. ctx: the settable fields of struct __sk_buff, or nothing.

    flags: 0 or TEST_COMPLETE.
    """
    return prepare_test_run(fd, data, ctx, room, flags)()


def prepare_test_run(
    fd: int, data: bytes, ctx: bytes = b"", room: int = 1024, flags: int = 0
) -> Callable[[], Run]:
    """:func:`prog_test_run`, to be called later, once: then little more than the system call is left."""
    attr = _Attr()
    out = ctypes.create_string_buffer(len(data) + room)
    ctx_out = ctypes.create_string_buffer(max(len(ctx), 1))
    attr.put(0, fd)
    attr.put(8, len(data))
    attr.put(12, len(out))
    attr.pointer(16, data)
    attr.pointer(24, out)
    attr.put(32, 1)
    if ctx:
        attr.put(40, len(ctx))
        attr.put(44, len(ctx))
        attr.pointer(48, ctx)
        attr.pointer(56, ctx_out)
    attr.put(64, flags)

    def run() -> Run:
        attr.call(PROG_TEST_RUN, 80)
        retval = attr.get(4)
        return Run(
            retval - (1 << 32) if retval >> 31 else retval,
            out.raw[: attr.get(12)],
            ctx_out.raw[: attr.get(44)] if ctx else b"",
        )

    return run


_BEFORE = 8  # BPF_F_BEFORE; without a relative: first of all
_TCX_MAX = 64  # include/linux/bpf_mprog.h, BPF_MPROG_MAX


def prog_attach(ifindex: int, type_: int, fd: int) -> None:
    """Puts a program at the front of a tcx hook; it stays when the fd is closed."""
    attr = _Attr()
    for i, value in enumerate((ifindex, fd, type_, _BEFORE)):
        attr.put(4 * i, value)
    attr.call(PROG_ATTACH, 32)


def prog_detach(ifindex: int, type_: int, fd: int) -> None:
    """Takes a program off a tcx hook."""
    attr = _Attr()
    for i, value in enumerate((ifindex, fd, type_)):
        attr.put(4 * i, value)
    attr.call(PROG_DETACH, 32)


def prog_query(ifindex: int, type_: int) -> list[int]:
    """Ids of the programs on a tcx hook, in the order in which they run."""
    ids = (ctypes.c_char * (4 * _TCX_MAX))()
    attr = _Attr()
    attr.put(0, ifindex)
    attr.put(4, type_)
    attr.pointer(16, ids)
    attr.put(24, _TCX_MAX)
    attr.call(PROG_QUERY, 64)
    return list(memoryview(ids.raw).cast("I")[: attr.get(24)])


def prog_fd(prog_id: int) -> int:
    """A file descriptor of a loaded program."""
    attr = _Attr()
    attr.put(0, prog_id)
    return attr.call(PROG_FD_BY_ID, 12)


def enable_stats() -> int:
    """Has the kernel count time and runs of all programs until the fd that this returns is closed."""
    return _Attr().call(ENABLE_STATS, 4)  # the 0 is BPF_STATS_RUN_TIME


def map_fd(map_id: int) -> int:
    """A file descriptor of an existing map."""
    attr = _Attr()
    attr.put(0, map_id)
    return attr.call(MAP_FD_BY_ID, 12)


def _info(fd: int, info: ctypes.Array[ctypes.c_char]) -> None:
    attr = _Attr()
    attr.put(0, fd)
    attr.put(4, len(info))
    attr.pointer(8, info)
    attr.call(OBJ_INFO, 16)


@dataclass(frozen=True)
class ProgInfo:
    """What the kernel tells of a program. run_ns and run_count grow while statistics are on (enable_stats).

    insns: instructions as the verifier left them; jited: bytes of machine code.
    """

    id: int
    name: str
    map_ids: tuple[int, ...]
    run_ns: int
    run_count: int
    insns: int
    jited: int


def prog_info(fd: int) -> ProgInfo:
    """Name, id, maps and costs of a program (struct bpf_prog_info)."""
    ids = (ctypes.c_uint32 * 64)()
    raw = bytearray(232)
    raw[52:56] = len(ids).to_bytes(4, "little")
    raw[56:64] = ctypes.addressof(ids).to_bytes(8, "little")
    info = ctypes.create_string_buffer(bytes(raw), len(raw))
    _info(fd, info)

    def word(offset: int, size: int = 4) -> int:
        return int.from_bytes(info.raw[offset : offset + size], "little")

    name = info.raw[64:80].split(b"\0")[0].decode()
    maps = tuple(ids[: word(52)])
    return ProgInfo(word(4), name, maps, word(192, 8), word(200, 8), word(20) // 8, word(16))


@dataclass(frozen=True)
class Map:
    """An open map. Keys and values are the raw bytes of their C structures."""

    fd: int
    id: int
    type: int
    key_size: int
    value_size: int
    max_entries: int
    name: str

    @classmethod
    def from_fd(cls, fd: int) -> Map:
        """Asks the kernel what a map fd is (struct bpf_map_info)."""
        info = ctypes.create_string_buffer(88)
        _info(fd, info)
        w = [int.from_bytes(info.raw[i : i + 4], "little") for i in range(0, 24, 4)]
        return cls(fd, w[1], w[0], w[2], w[3], w[4], info.raw[24:40].split(b"\0")[0].decode())

    @classmethod
    def create(
        cls,
        name: str,
        type_: int,
        key_size: int,
        value_size: int,
        max_entries: int,
        flags: int = 0,
        btf: tuple[int, int, int] | None = None,
    ) -> Map:
        """Creates a map. btf: fd, key type id and value type id."""
        attr = _Attr()
        for i, value in enumerate((type_, key_size, value_size, max_entries, flags)):
            attr.put(4 * i, value)
        attr.raw[28:44] = _name(name)
        if btf:
            for i, value in enumerate(btf):
                attr.put(48 + 4 * i, value)
        return cls.from_fd(_create(attr, MAP_CREATE, 72))

    @property
    def percpu(self) -> bool:
        """Whether a value has one copy for each possible CPU."""
        return self.type in _PERCPU_TYPES

    def _room(self) -> int:
        return (self.value_size + 7) // 8 * 8 * possible_cpus() if self.percpu else self.value_size

    def _access(
        self, cmd: int, key: bytes | None, other: ctypes.Array[ctypes.c_char] | bytes | None, flags: int
    ) -> None:
        attr = _Attr()
        attr.put(0, self.fd)
        if key is not None:
            attr.pointer(8, key)
        if other is not None:
            attr.pointer(16, other)
        attr.put(24, flags, 8)
        attr.call(cmd, 32)

    def lookup(self, key: bytes) -> bytes | None:
        """The value (all CPUs' copies one after the other for a per-CPU map), or None."""
        out = ctypes.create_string_buffer(self._room())
        try:
            self._access(MAP_LOOKUP, key, out, 0)
        except OSError as e:
            if e.errno == errno.ENOENT:
                return None
            raise
        return out.raw

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """Sets a value."""
        self._access(MAP_UPDATE, key, value, flags)

    def delete(self, key: bytes) -> bool:
        """Deletes a key; False if it was not there."""
        try:
            self._access(MAP_DELETE, key, None, 0)
        except OSError as e:
            if e.errno == errno.ENOENT:
                return False
            raise
        return True

    def keys(self) -> Iterator[bytes]:
        """All keys, in the kernel's order; under concurrent change some may repeat or be missed."""
        key: bytes | None = None
        out = ctypes.create_string_buffer(self.key_size)
        while True:
            try:
                self._access(MAP_NEXT, key, out, 0)
            except OSError as e:
                if e.errno == errno.ENOENT:
                    return
                raise
            key = out.raw
            yield key

    def items(self, chunk: int = 1024) -> Iterator[tuple[bytes, bytes]]:
        """All keys and values, many at a system call (BPF_MAP_LOOKUP_BATCH, kernel 5.6)."""
        if self.percpu:
            for key in self.keys():
                value = self.lookup(key)
                if value is not None:
                    yield key, value
            return
        ks, vs = self.key_size, self.value_size
        keys = ctypes.create_string_buffer(ks * chunk)
        values = ctypes.create_string_buffer(vs * chunk)
        cursor = ctypes.create_string_buffer(max(ks, 4))
        first = True
        while True:
            attr = _Attr()
            if not first:
                attr.pointer(0, cursor)
            attr.pointer(8, cursor)
            attr.pointer(16, keys)
            attr.pointer(24, values)
            attr.put(32, chunk)
            attr.put(36, self.fd)
            done = False
            try:
                attr.call(MAP_LOOKUP_BATCH, 56)
            except OSError as e:
                if e.errno == errno.ENOSPC and chunk < self.max_entries:
                    yield from self.items(min(chunk * 4, self.max_entries))  # a bucket did not fit
                    return
                if e.errno != errno.ENOENT:
                    raise
                done = True
            n = attr.get(32)
            kraw, vraw = keys.raw, values.raw
            for i in range(n):
                yield kraw[i * ks : (i + 1) * ks], vraw[i * vs : (i + 1) * vs]
            if done:
                return
            first = False

    def close(self) -> None:
        """Closes the fd; the map lives on while a program uses it."""
        os.close(self.fd)
