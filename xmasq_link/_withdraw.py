# SPDX-License-Identifier: Apache-2.0
"""Taking keys back when a link goes: its peers must stop encoding before the hooks are gone.

Without the hooks, an encoded packet would reach this host's own services as if the peer's host had
sent it. So the sender of each live key is told, with a bounced packet that has no payload: it ends
the flow's entry (kmod_ebpf/src/decode.h, bounced). One that is lost on the way leaves its flow to the
end of its lease; docs/security.md says what that means.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable
from typing import Any

from kmod_ebpf import maps as m

from . import _wire

_KIND_CONTROL = 2  # kmod_ebpf/src/state.h: the egress hook lets it bear BOUNCE
_NO_NEXT_HEADER = 59
_DF = 0x4000


def _packet(conf: m.Conf, slot: Any) -> bytes:
    if len(bytes(slot.local)) == 16:
        first = _wire.first_word(slot.key, conf.bounce)
        return struct.pack(">IHBB16s16s", first, 0, _NO_NEXT_HEADER, 64, bytes(slot.local), bytes(slot.peer))
    dscp = _wire.wire_dscp(slot.key, conf.bounce, conf.seg_bits)
    ident = _wire.wire_id(slot.key, conf.seg_bits)
    return struct.pack(
        ">BBHHHBBH4s4s",
        0x45,
        dscp << 2,
        20,
        ident,
        _DF,
        64,
        _NO_NEXT_HEADER,
        0,  # the kernel fills it in
        bytes(slot.local),
        bytes(slot.peer),
    )


def withdraw(conf: m.Conf, slots: Iterable[Any]) -> None:
    """Tells the holders of these keys to stop. A courtesy: what cannot be sent is passed over."""
    of_family: dict[socket.AddressFamily, list[Any]] = {}
    for slot in slots:
        family = socket.AF_INET6 if len(bytes(slot.local)) == 16 else socket.AF_INET
        of_family.setdefault(family, []).append(slot)
    for family, its_slots in of_family.items():
        with (
            contextlib.suppress(OSError),
            socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as s,
        ):
            # Not the mark: the host's routing may depend on it.
            says = struct.pack("=I", conf.magic | _KIND_CONTROL)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, says)
            for slot in its_slots:
                with contextlib.suppress(OSError):
                    s.sendto(_packet(conf, slot), (socket.inet_ntop(family, bytes(slot.peer)), 0))
