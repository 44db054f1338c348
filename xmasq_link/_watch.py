# SPDX-License-Identifier: Apache-2.0
"""Keeping vxlan devices attached: those that are there, and those that come or come again.

What the kernel announces only says that it is time to look; what is to be done follows from how things
are. So nothing is lost with an announcement, and starting anew is always safe.
"""

from __future__ import annotations

import contextlib
import fnmatch
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute

from ._attach import attach_link, check_options, detach_link, refresh_link, state_of
from ._datapath import require_root
from ._errors import InputError, XmasqError
from ._flow import flush
from ._netns import Netns
from ._netns import netns as inside

_RTMGRP = 0x1 | 0x10 | 0x100  # linux/rtnetlink.h: links, IPv4 and IPv6 addresses
_PERIOD = 30.0  # seconds; what is not announced, such as hooks that others remove, is found then
_SETTLE = 0.05  # seconds; a CNI makes several changes at a time


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to a device: "attached", "moved" to another underlay, "repaired", "gone",
    "detached", or "refused" for the reason in text."""

    device: str
    what: str
    text: str = ""


def watch_links(
    pattern: str,
    *,
    report: Callable[[Change], None],
    stop: int,
    detach: bool = False,
    options: Mapping[str, Any] | None = None,
    netns: Netns | None = None,
) -> None:
    """Attaches the vxlan devices whose names match, now and as they come, until it is told to stop.

    pattern: as in a shell (fnmatch), several separated by commas. report: called for each change.
    stop: a file descriptor; this returns when it can be read from. detach: take all apart then; by
    default they stay links. options: keyword arguments of attach_link.

    Raises InputError for a bad argument. A device that cannot be a link is reported and tried again.
    """
    patterns = check_pattern(pattern)
    check_options(**(options or {}))
    require_root()
    with inside(netns), _announcements() as wake:
        keeper = _Keeper(patterns, dict(options or {}), report)
        poll = select.poll()
        for fd in (wake.fileno(), stop):
            poll.register(fd, select.POLLIN)
        while True:
            keeper.look()
            ready = dict(poll.poll(_PERIOD * 1000))
            if stop in ready:
                break
            if ready:
                time.sleep(_SETTLE)
                _drain(wake)
        if detach:
            keeper.release()


def check_pattern(pattern: str) -> list[str]:
    """The patterns of a list. Raises InputError."""
    patterns = pattern.split(",")
    if not all(patterns) or any(len(p.encode()) > 64 or "/" in p or p.split() != [p] for p in patterns):
        raise InputError("--watch", f'"{pattern}" is no pattern of device names such as flannel.*')
    return patterns


@contextlib.contextmanager
def _announcements() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as s:
        s.setblocking(False)
        s.bind((0, _RTMGRP))
        yield s


def _drain(s: socket.socket) -> None:
    while True:
        try:
            s.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: some were lost, which is as good
            continue


class _Keeper:
    def __init__(
        self, patterns: list[str], options: dict[str, Any], report: Callable[[Change], None]
    ) -> None:
        self._patterns = patterns
        self._options = options
        self._report = report
        self._known: dict[int, str] = {}
        self._refused: dict[int, str] = {}

    def look(self) -> None:
        """Does what is to be done now."""
        devices = self._devices()
        for index in list(self._known):
            if index not in devices:
                self._report(Change(self._known.pop(index), "gone"))
        self._refused = {index: text for index, text in self._refused.items() if index in devices}
        for index, name in devices.items():
            try:
                self._attach(index, name)
                self._refused.pop(index, None)
            except XmasqError as e:
                text = str(e)
                if index not in self._devices():
                    continue  # it has gone meanwhile, and will be missed the next time
                if self._refused.get(index) != text:
                    self._refused[index] = text
                    self._report(Change(name, "refused", text))

    def _devices(self) -> dict[int, str]:
        with IPRoute() as ipr:
            found = {msg["index"]: str(msg.get_attr("IFLA_IFNAME")) for msg in ipr.get_links(kind="vxlan")}
        return {
            index: name
            for index, name in found.items()
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in self._patterns)
        }

    def _attach(self, index: int, name: str) -> None:
        state = state_of(name, self._options.get("dev"))
        match state:
            case "attached" | "made":
                self._known[index] = name
                return
            case "moved":
                detach_link(name)
            case "changed":
                refresh_link(name)
                flush(link=name)
                return
        attach_link(name, **self._options)
        self._known[index] = name
        self._report(Change(name, {"plain": "attached", "spoilt": "repaired"}.get(state, state)))

    def release(self) -> None:
        """Makes plain devices of the links."""
        for name in self._known.values():
            try:
                detach_link(name)
                self._report(Change(name, "detached"))
            except InputError:
                continue  # it was made as a link, or is no link any more
