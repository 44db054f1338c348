# SPDX-License-Identifier: Apache-2.0
"""Writes captured packets as pcapng, block by block (draft-ietf-opsawg-pcapng).

Of its own and not scapy's: a stream to a pipe with directions and, at the end, the drop count.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import BinaryIO

from ._model import Frame

_SECTION, _INTERFACE, _PACKET, _STATISTICS = 0x0A0D0D0A, 1, 6, 5
_MAGIC, _ETHERNET = 0x1A2B3C4D, 1
_SHB_USERAPPL = 4
_IF_NAME, _IF_TSRESOL = 2, 9
_EPB_FLAGS = 2
_ISB_IFRECV, _ISB_IFDROP = 4, 5
_INBOUND, _OUTBOUND = 1, 2


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _options(*options: tuple[int, bytes]) -> bytes:
    text = b"".join(struct.pack("=HH", code, len(value)) + _padded(value) for code, value in options)
    return text + bytes(4)  # opt_endofopt


def _block(kind: int, body: bytes) -> bytes:
    size = len(body) + 12
    return struct.pack("=II", kind, size) + body + struct.pack("=I", size)


class Writer:
    """One section with one interface. Takes a binary file; flushes it after each write."""

    def __init__(self, file: BinaryIO, name: str, snaplen: int) -> None:
        """name: of the interface. Raises OSError."""
        self._file = file
        head = struct.pack("=IHHq", _MAGIC, 1, 0, -1) + _options((_SHB_USERAPPL, b"xmasq capture"))
        interface = struct.pack("=HHI", _ETHERNET, 0, snaplen) + _options(
            (_IF_NAME, name.encode()), (_IF_TSRESOL, b"\x09")
        )
        self._put(_block(_SECTION, head) + _block(_INTERFACE, interface))

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()

    def packets(self, frames: Iterable[Frame]) -> None:
        """Adds packets. Raises OSError."""
        self._put(b"".join(map(_packet, frames)))

    def end(self, time_ns: int, received: int, dropped: int) -> None:
        """Adds how many packets there were, and how many had no room. Raises OSError."""
        options = _options(
            (_ISB_IFRECV, struct.pack("=Q", received)), (_ISB_IFDROP, struct.pack("=Q", dropped))
        )
        body = struct.pack("=III", 0, time_ns >> 32, time_ns & 0xFFFFFFFF) + options
        self._put(_block(_STATISTICS, body))


def _packet(frame: Frame) -> bytes:
    flags = _INBOUND if frame.direction == "in" else _OUTBOUND
    head = struct.pack(
        "=IIIII", 0, frame.time_ns >> 32, frame.time_ns & 0xFFFFFFFF, len(frame.data), frame.length
    )
    return _block(_PACKET, head + _padded(frame.data) + _options((_EPB_FLAGS, struct.pack("=I", flags))))
