# SPDX-License-Identifier: Apache-2.0
"""Room in the machine's queues, so that one laboratory's burst does not cost another one's packets.

What enters a namespace by a veth waits in a queue of its CPU (enqueue_to_backlog in net/core/dev.c). All
namespaces share it, and what finds it full is dropped: a thousand packets by default, which a single TCP
window makes when it is segmented in software.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

#: It belongs to the machine and not to a namespace. In packets.
_SETTING = Path("/proc/sys/net/core/netdev_max_backlog")
_ENOUGH = 100_000
#: What the setting was. Locked by all who want the room; who is the last one takes it away again.
_BEFORE = Path("/run/xmq-backlog")


@contextlib.contextmanager
def room() -> Iterator[None]:
    """The queues are long until the end of the ``with``, and until that of others in other processes.

    Does nothing where the machine does not allow it. What a killed process left behind, the next one mends.
    """
    try:
        fd = os.open(_BEFORE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield
        return
    with os.fdopen(fd, "r+b", 0):
        fcntl.flock(fd, fcntl.LOCK_SH)
        with contextlib.suppress(OSError):
            _raise(fd)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # BlockingIOError: another one still wants it
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _lower(fd)


def _raise(fd: int) -> None:
    now = int(_SETTING.read_text())
    if now < _ENOUGH:
        os.pwrite(fd, b"%d\n" % now, 0)
        _SETTING.write_text(f"{_ENOUGH}\n")


def _lower(fd: int) -> None:
    before = os.pread(fd, 32, 0)
    if before and int(_SETTING.read_text()) == _ENOUGH:
        _SETTING.write_text(before.decode())
    os.truncate(fd, 0)
