# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: entering one, naming the present one, and a lock for each."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, cast

from ._errors import InputError

_SELF = "/proc/thread-self/ns/net"
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h, kernel 5.14


class _HasStatus(Protocol):
    """pyroute2's IPRoute and NetNS: status["netns"] is what they were opened with."""

    @property
    def status(self) -> Mapping[str, Any]: ...


#: A network namespace: a name as in `ip netns list`; a path such as /proc/PID/ns/net; an open file
#: descriptor of one; a pyroute2 IPRoute or NetNS object, for the namespace that it works in.
Netns = str | int | os.PathLike[str] | _HasStatus


def _open(where: Netns | None) -> int | None:
    """A descriptor of a namespace; None: the present one. Raises InputError."""
    if where is not None and not isinstance(where, (str, int, os.PathLike)):
        try:
            where = cast("str | int | None", where.status["netns"])
        except KeyError:
            return None  # it was opened without
        except (AttributeError, TypeError):
            kind = type(where).__name__
            text = f"a {kind} is none; allowed are a name, a path, a file descriptor, IPRoute and NetNS"
            raise InputError("netns", text) from None
    if where is None:
        return None
    try:
        if isinstance(where, int):
            return os.dup(where)
        text = os.fspath(where)
        return os.open(text if "/" in text else f"/run/netns/{text}", os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError):
        raise InputError("netns", f'there is no network namespace "{where}"') from None


@contextlib.contextmanager
def netns(name: Netns | None) -> Iterator[None]:
    """The calling thread works in another network namespace; None: it stays where it is.

    name: as in `ip netns list`; or a path such as /proc/PID/ns/net, an open file descriptor, or a
    pyroute2 IPRoute or NetNS object. Raises InputError.
    """
    from pyroute2.netns import setns

    target = _open(name)
    if target is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, target)
        back = here()
        stack.callback(os.close, back)
        try:
            setns(target)
        except OSError as e:
            raise InputError("netns", f'cannot enter "{name}": {os.strerror(e.errno or 0)}') from e
        stack.callback(setns, back)
        yield


def here() -> int:
    """A descriptor of the present namespace, which is the caller's to close."""
    return os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)


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
    fd = here()
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
