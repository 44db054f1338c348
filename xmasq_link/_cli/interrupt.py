# SPDX-License-Identifier: Apache-2.0
"""Signals that end a command become an exception, at a place where the command can be undone."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

_OURS = frozenset({"xmasq_link", "kmod_ebpf"})
_WAITING = frozenset({"subprocess", "selectors"})
_LIKELY = _OURS | _WAITING
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: In the environment, if the launcher holds these back until there are handlers (iproute_ext/launch.c).
_HELD = "XMASQ_SIGNALS_HELD"
_ENTERING = frozenset({"__enter__", "enter_context"})


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


class Interrupted(KeyboardInterrupt):
    """A signal ended the command.

    handled: set by a command that such a signal ends in good order, as Ctrl-C does a capture.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
        self.handled = False


class Signals:
    """Context manager: the first SIGINT, SIGTERM or SIGHUP raises Interrupted, the next ones nothing.

    It is raised in code of this project only, or while that waits for a child process, and not while
    a `with` cleans up. Elsewhere it would do harm: pyroute2 runs an event loop for each request,
    where an exception may be swallowed, or may leave the request to be carried out later, after the
    clean-up has looked. There the signal is kept until our code goes on.

    last: the process ends now, so a signal that comes too late is ignored, for the exit status to
    be true. Otherwise it goes to whom it went before.
    """

    def __init__(self, *, last: bool) -> None:
        self._last = last
        self._old: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
        self._bottom: FrameType | None = None
        self._caught: int | None = None
        self._raised: Interrupted | None = None
        self._held = False

    def __enter__(self) -> Signals:
        self._bottom = sys._getframe(1)
        with contextlib.suppress(ValueError):  # handlers are the main thread's
            for signum in _ENDING:
                if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup means it
                    self._old[signum] = signal.signal(signum, self._arrived)
            if os.environ.pop(_HELD, None):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = True
        if self._caught is not None:
            sys.setprofile(None)
        for signum, old in self._old.items():
            signal.signal(signum, signal.SIG_IGN if self._last else old)
        if kind is None and self._caught is not None and not (self._raised and self._raised.handled):
            raise Interrupted(self._caught)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within, the first signal waits: for a short command whose half is worse than its whole."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _arrived(self, signum: int, frame: FrameType | None) -> None:
        if self._raised:
            return
        first, self._caught = self._caught is None, self._caught or signum
        if self._held and first:
            return
        if self._safe(frame):
            self._raise()
        sys.setprofile(self._watch)

    def _watch(self, frame: FrameType, _event: str, _arg: Any) -> None:
        """Called as functions are entered and left, while a signal is kept."""
        if _module(frame) in _LIKELY and self._safe(frame):
            self._raise()

    def _raise(self) -> None:
        assert self._caught is not None
        self._raised = Interrupted(self._caught)
        sys.setprofile(None)
        raise self._raised

    def _safe(self, frame: FrameType | None) -> bool:
        """Whether an exception may be raised in this frame."""
        stack = []
        while frame is not None and frame is not self._bottom:
            stack.append((_module(frame), frame.f_code.co_name))
            frame = frame.f_back
        if ("subprocess", "communicate") in stack:  # subprocess.run then ends the child
            while stack and stack[0][0] in _WAITING:
                del stack[0]
        return (
            bool(stack)
            and stack[0][0] in _OURS
            and all(
                module in _OURS or (module == "contextlib" and name in _ENTERING) for module, name in stack
            )
        )
