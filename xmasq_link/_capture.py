# SPDX-License-Identifier: Apache-2.0
"""Capturing at a link: what containers send into it and get out of it, on the fast path and beside it.

A packet socket on the link sees the fallback only. So a program of its own stands in front of the
link's programs for as long as somebody captures (kmod_ebpf/src/capture.c).
"""

from __future__ import annotations

import contextlib
import errno
import struct
import time
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from pyroute2.netlink.exceptions import NetlinkError

from kmod_ebpf import capture as bpf_capture
from kmod_ebpf import loader, perf
from kmod_ebpf import maps as m

from . import _hold
from . import _pcapng as pcapng
from ._datapath import api, require_root
from ._errors import InputError
from ._guest import guest
from ._looker import Looker
from ._model import Frame
from ._netns import Netns

#: A packet's bytes that are kept: a record of the kernel's ring holds less than 64 KB.
SNAPLEN_MIN, SNAPLEN_MAX = 14, 65_000
_RING_ALL, _RING_LEAST, _RING_MOST = 1 << 24, 1 << 18, 1 << 22
_LOOK_AGAIN = 1.0  # seconds between two looks whether the link is still there


class Capture(Looker):
    """Packets of one link, as they come. A context manager and an iterator, made by capture().

    link: the name. snaplen: bytes that are kept of each. received: packets so far. dropped: packets
    that were lost because they were not taken in time; exact.
    """

    def __init__(self, name: str, snaplen: int, count: int | None) -> None:
        super().__init__()
        self.link = name
        self.snaplen = snaplen
        self.received = 0
        self._count = count
        self._dropped = 0
        with contextlib.ExitStack() as undo:
            self._open(name, undo)
            self._close = undo.pop_all()

    def _open(self, name: str, undo: contextlib.ExitStack) -> None:
        def load(conf: m.Conf, called: Mapping[str, str]) -> loader.Loaded:
            return bpf_capture.load(conf, self.snaplen, called)

        at = undo.enter_context(guest(name, load, loader.CAPTURE[1]))
        self._ipr, self._ifindex, self._loaded = at.ipr, at.ifindex, at.loaded
        ring = max(_RING_LEAST, min(_RING_MOST, 1 << (_RING_ALL // len(perf.online_cpus())).bit_length() - 1))
        self._reader = undo.enter_context(perf.Reader(self._loaded.maps["frames"], ring=ring))
        self._wall = time.time_ns() - _hold.now_ns()

    @property
    def dropped(self) -> int:
        if self._loaded.maps:
            self._dropped = bpf_capture.dropped(self._loaded)
        return self._dropped

    def fileno(self) -> int:
        """For select and the like: readable when packets may have come."""
        return self._reader.fileno()

    def _vanished(self) -> bool:
        """Whether the link was deleted meanwhile."""
        try:
            self._ipr.link("get", index=self._ifindex)
        except NetlinkError as e:
            return bool(e.code == errno.ENODEV)
        return False

    def read(self, timeout: float | None = 0) -> list[Frame]:
        """The packets that have come, in order. timeout: seconds to wait if there are none; None:
        for ever. May return none all the same."""
        frames = [self._frame(raw) for raw in self._reader.read(timeout)]
        if self._count is not None:
            del frames[self._count - self.received :]
        self.received += len(frames)
        return frames

    def _frame(self, raw: bytes) -> Frame:
        head = m.Frame.parse(raw)
        begin = len(bytes(head))
        data, length = raw[begin : begin + head.caplen], head.len
        if any(head.vlan_proto):  # the kernel keeps the tag beside the packet
            tag = bytes(head.vlan_proto) + struct.pack(">H", head.vlan_tci)
            data, length = (data[:12] + tag + data[12:])[: self.snaplen], length + len(tag)
        return Frame(
            time_ns=head.at + self._wall,
            direction="in" if head.direction == m.FRAME_IN else "out",
            length=length,
            data=data,
        )

    def batch(self) -> list[Frame]:
        """Waits for the next packets. None any more: after count packets, when the link is gone, or
        when the capture is closed."""
        while self._loaded.maps and self.received != self._count:
            if frames := self.read(_LOOK_AGAIN):
                return frames
            if self._vanished():
                self.close()
        return []

    def __iter__(self) -> Iterator[Frame]:
        while frames := self.batch():
            yield from frames

    def save(self, file: BinaryIO) -> None:
        """Writes packets to a binary file as pcapng, until there are none any more.

        However it ends, also by an interruption, the file is complete and has the drop count. Flushes
        what has come at once. Raises OSError if the file does not take it.
        """
        writer = pcapng.Writer(file, self.link, self.snaplen)
        try:
            while frames := self.batch():
                writer.packets(frames)
        except OSError:
            raise
        except BaseException:
            writer.end(time.time_ns(), self.received, self.dropped)
            raise
        writer.end(time.time_ns(), self.received, self.dropped)

    def close(self) -> None:
        """Takes the programs away. May be called more than once."""
        _ = self.dropped
        super().close()


@api
def capture(
    link: str, *, snaplen: int = SNAPLEN_MAX, count: int | None = None, netns: Netns | None = None
) -> Capture:
    """Starts to capture at a link: both directions, as the containers' host sees them there.

    A packet that leaves is seen before it is encoded; one that arrives, after it was restored. A
    buffer that leaves as several segments is one packet, and a checksum that a device will fill in
    is not there yet, as with every capture. snaplen: bytes that are kept of a packet, 14 to 65,000.
    count: how many packets, by default without end.

    Use the result in a `with`, or close it. A capture whose process was killed costs a little on each
    packet of the link, until the next one there cleans up or the link goes.

    Raises InputError for a bad argument, XmasqError if the kernel refuses.
    """
    if not SNAPLEN_MIN <= snaplen <= SNAPLEN_MAX:
        text = f"{snaplen} is out of range, allowed is {SNAPLEN_MIN} to {SNAPLEN_MAX} bytes"
        raise InputError("snaplen", text)
    if count is not None and count < 1:
        raise InputError("count", f"{count} is out of range, allowed is 1 and more")
    require_root()
    return Capture(link, snaplen, count)
