# SPDX-License-Identifier: Apache-2.0
"""What those have in common who look at links for a while: capture, meter and monitor."""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType
from typing import Self


class Looker:
    """A context manager. What there is to take away is in ``_close``."""

    def __init__(self) -> None:
        self._close = contextlib.ExitStack()

    def close(self) -> None:
        """Takes the programs away. May be called more than once."""
        self._close.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lease(name: str) -> socket.socket | None:
    """A name that nobody else in this network namespace has while the process lives; None if taken."""
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        s.bind(f"\0{name}")
    except OSError:
        s.close()
        return None
    return s
