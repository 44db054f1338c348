# SPDX-License-Identifier: Apache-2.0
"""The terminal: colours if it has some, lines of progress, and ASCII where nothing else is possible."""

from __future__ import annotations

import contextlib
import os
from typing import TextIO

#: No line of the report is longer.
WIDTH = 88

_STYLES = {
    "title": "1;36",
    "rule": "36",
    "strong": "1",
    "faint": "2",
    "good": "32",
    "bad": "1;31",
    "encoded": "32",
    "fallback": "33",
    "control": "35",
    "native": "34",
    "xmasq": "32",
    "vxlan": "33",
}

#: One character each, so that columns stay columns.
_ASCII = str.maketrans(
    {
        **dict.fromkeys("┌┐└┘├┤┬┴", "+"),
        **dict.fromkeys("█▉▊▋▌", "#"),
        **dict.fromkeys("▍▎▏", " "),
        **dict(zip("─│►◄→░…▔✓✗", "-|><>..^+!", strict=True)),
    }
)


class Screen:
    """Writes the report to ``out``, and progress to ``err``, where it does not get into a pipe."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out, self._err = out, err
        # Python takes the C locale for UTF-8; but who sets LC_ALL=C wants ASCII.
        self._unicode = (out.encoding or "").lower().replace("-", "") == "utf8" and (
            os.environ.get("LC_ALL") not in ("C", "POSIX")
        )
        capable = os.environ.get("TERM", "dumb") != "dumb"
        self._colour = out.isatty() and capable and "NO_COLOR" not in os.environ
        self._moving = err.isatty() and capable
        self._shown = ""

    def paint(self, text: str, style: str) -> str:
        """``text`` in a style; pad it to its width before."""
        return f"\033[{_STYLES[style]}m{text}\033[0m" if self._colour and text else text

    def line(self, text: str = "") -> None:
        """A line of the report."""
        self._wipe()
        self._out.write(self._encodable(text.rstrip()) + "\n")
        self._out.flush()

    def lines(self, text: str) -> None:
        """Lines of the report."""
        for one in text.splitlines():
            self.line(one)

    def section(self, title: str, note: str = "") -> None:
        """A headline."""
        rule = "─" * (WIDTH - len(title) - len(note) - 4 - (4 if note else 0))
        rest = f"{rule} {note} ──" if note else rule
        self.line()
        self.line(f"{self.paint(f'── {title}', 'title')} {self.paint(rest, 'rule')}")

    def progress(self, text: str, detail: str = "") -> None:
        """What happens now. A terminal shows it until the next line; elsewhere ``text`` stays, once."""
        if self._moving:
            self._wipe()
            shown = self._encodable(f"  {text}  {detail}".rstrip()[: WIDTH - 1])
            self._err.write(f"\033[2m{shown}\033[0m" if self._colour else shown)
            self._shown = text
        elif text != self._shown:
            self._err.write(f"demo: {text}\n")
            self._shown = text
        self._err.flush()

    def error(self, text: str) -> None:
        """One line for what went wrong."""
        with contextlib.suppress(OSError):  # there may be nobody left to read it
            self._wipe()
            self._err.write(f"demo: {' '.join(text.split())}\n")
            self._err.flush()

    def _wipe(self) -> None:
        if self._moving and self._shown:
            self._err.write("\r\033[K")
            self._err.flush()
            self._shown = ""

    def _encodable(self, text: str) -> str:
        return text if self._unicode else text.translate(_ASCII)


def bar(value: float, full: float, width: int) -> str:
    """A bar, in eighths of a character; ``full`` would be ``width`` characters."""
    eighths = round(8 * width * value / full) if full else 0
    whole, rest = divmod(eighths, 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[rest].strip()
