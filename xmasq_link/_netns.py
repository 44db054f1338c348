# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: entering one, naming the present one, and a lock for each."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator

from ._errors import InputError

_SELF = "/proc/thread-self/ns/net"
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h, kernel 5.14


@contextlib.contextmanager
def netns(name: str) -> Iterator[None]:
    """The calling thread works in another network namespace.

    name: as in `ip netns list`, or a path such as /proc/PID/ns/net. Raises InputError.
    """
    from pyroute2.netns import setns

    path = name if "/" in name else f"/run/netns/{name}"
    try:
        target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise InputError("netns", f'there is no network namespace "{name}"') from None
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, target)
        back = os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, back)
        try:
            setns(target)
        except OSError as e:
            raise InputError("netns", f'cannot enter "{name}": {os.strerror(e.errno or 0)}') from e
        stack.callback(setns, back)
        yield


def cookie() -> str:
    """A name of the present namespace that is not used again while the machine runs.

    Before kernel 5.14 it is the inode number, which may be.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        try:
            raw = s.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError:
            return f"i{os.stat(_SELF).st_ino}"
    return f"c{int.from_bytes(raw, 'little')}"


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Holds the lock of the present namespace: one change at a time, also between processes.

    The lock lies on the namespace's own file, so it ends with the process and with the namespace.
    """
    fd = os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
