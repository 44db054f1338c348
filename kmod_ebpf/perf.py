# SPDX-License-Identifier: GPL-2.0-only
"""Reads what programs write with bpf_perf_event_output: one ring for each CPU (perf_event_open(2)).

Memory is bounded by the rings. What does not fit is lost in the kernel, which counts it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import select
import struct
import threading
from collections.abc import Iterator

from . import bpf

_SYSCALL = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "s390x": 331, "ppc64le": 319}
_libc = ctypes.CDLL(None, use_errno=True)

# uapi/linux/perf_event.h
_TYPE_SOFTWARE, _SW_BPF_OUTPUT, _SAMPLE_RAW = 1, 10, 1 << 10
_FLAG_FD_CLOEXEC = 1 << 3
_IOC_ENABLE = 0x2400
_RECORD_LOST, _RECORD_SAMPLE = 2, 9
_ATTR = struct.Struct("=IIQQQQQI")  # struct perf_event_attr up to wakeup_events
_ATTR_SIZE = 112
_DATA_HEAD, _DATA_TAIL = 1024, 1032  # in struct perf_event_mmap_page
_HEADER = struct.Struct("=IHH")
_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")


def online_cpus() -> list[int]:
    """Numbers of the CPUs that run (cpumask(9))."""
    with open("/sys/devices/system/cpu/online") as f:
        cpus: list[int] = []
        for part in f.read().strip().split(","):
            first, _, last = part.partition("-")
            cpus.extend(range(int(first), int(last or first) + 1))
        return cpus


def _open(cpu: int) -> int:
    nr = _SYSCALL.get(platform.machine())
    if nr is None:
        raise OSError(errno.ENOSYS, f"perf_event_open(2) is not known on {platform.machine()}")
    attr = bytearray(_ATTR_SIZE)
    _ATTR.pack_into(attr, 0, _TYPE_SOFTWARE, _ATTR_SIZE, _SW_BPF_OUTPUT, 1, _SAMPLE_RAW, 0, 0, 1)
    buf = (ctypes.c_char * len(attr)).from_buffer(attr)
    fd = _libc.syscall(nr, ctypes.byref(buf), -1, cpu, -1, _FLAG_FD_CLOEXEC)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(fd)


class _Ring:
    """One CPU's ring: the kernel writes at its head, we read at its tail."""

    def __init__(self, cpu: int, size: int) -> None:
        self.fd = _open(cpu)
        try:
            self._map = mmap.mmap(self.fd, mmap.PAGESIZE + size)
            fcntl.ioctl(self.fd, _IOC_ENABLE, 0)
        except BaseException:
            os.close(self.fd)
            raise
        self._size = size
        self._barrier = threading.Lock()

    def close(self) -> None:
        self._map.close()
        os.close(self.fd)

    def _copy(self, at: int, size: int) -> bytes:
        at %= self._size
        begin, room = mmap.PAGESIZE + at, self._size - at
        if size <= room:
            return self._map[begin : begin + size]
        return self._map[begin:] + self._map[mmap.PAGESIZE : mmap.PAGESIZE + size - room]

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Types and bodies of the records that are there now."""
        (head,) = _U64.unpack_from(self._map, _DATA_HEAD)
        with self._barrier:  # nothing of the data may be read before the head was
            (tail,) = _U64.unpack_from(self._map, _DATA_TAIL)
        while tail < head:
            kind, _, size = _HEADER.unpack(self._copy(tail, _HEADER.size))
            if size < _HEADER.size:
                break  # cannot be
            body = self._copy(tail + _HEADER.size, size - _HEADER.size)
            tail += size
            with self._barrier:  # nor may the tail be written before the data was read
                _U64.pack_into(self._map, _DATA_TAIL, tail)
            yield kind, body


class Reader:
    """Takes what is written to a perf event array. A context manager.

    lost: how many records there was no room for, so far as the kernel has told.
    """

    def __init__(self, array: bpf.Map, *, first: int = 0, step: int = 1, ring: int = 1 << 16) -> None:
        """array: stays the caller's to close, and not before this is. first: the entry of CPU 0; step:
        to that of the next CPU. ring: bytes for each CPU, a power of two.

        Raises OSError: EPERM without CAP_PERFMON, ENOSYS where the kernel has no perf events.
        """
        self.lost = 0
        self._array = array
        self._keys: list[bytes] = []
        self._rings: list[_Ring] = []
        self._poll = select.epoll()
        try:
            for cpu in online_cpus():
                try:
                    one = _Ring(cpu, ring)
                except OSError as e:
                    if e.errno in (errno.ENODEV, errno.ENXIO):
                        continue  # it was just taken off line
                    raise
                self._rings.append(one)
                key = _U32.pack(first + step * cpu)
                array.update(key, _U32.pack(one.fd))
                self._keys.append(key)
                self._poll.register(one.fd, select.EPOLLIN)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """A descriptor that is readable when something may have come."""
        return self._poll.fileno()

    def read(self, timeout: float | None = 0) -> list[bytes]:
        """What has come, in the order of the time stamps that it begins with (u64, any clock).

        timeout: seconds to wait if nothing is there; None: for ever. May return nothing all the same.
        """
        found = self._take()
        if not found and timeout != 0:
            self._poll.poll(timeout)
            found = self._take()
        return found

    def _take(self) -> list[bytes]:
        found = []
        for ring in self._rings:
            for kind, body in ring.records():
                if kind == _RECORD_SAMPLE:
                    (size,) = _U32.unpack_from(body)
                    found.append(body[4 : 4 + size])
                elif kind == _RECORD_LOST:
                    self.lost += _U64.unpack_from(body, 8)[0]
        found.sort(key=lambda raw: _U64.unpack_from(raw)[0])
        return found

    def close(self) -> None:
        """Stops; also happens when the process ends (kernel/bpf/arraymap.c, release of the map's file)."""
        for key in self._keys:
            with contextlib.suppress(OSError):
                self._array.delete(key)
        for ring in self._rings:
            ring.close()
        self._keys, self._rings = [], []
        self._poll.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
