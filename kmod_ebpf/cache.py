# SPDX-License-Identifier: GPL-2.0-only
"""Files that are kept for the next command, in a directory that only root can write."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

DIRECTORY = Path("/var/cache/xmasq")


def read(file: Path) -> str | None:
    """What was kept, or None. What others could have written is not believed."""
    with contextlib.suppress(OSError):
        stat = file.stat()
        if stat.st_uid == 0 and not stat.st_mode & 0o022:
            return file.read_text()
    return None


def write(file: Path, text: str) -> None:
    """Keeps a text, if that is possible: on a read-only system it is only made more often."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        part = file.parent / f".{os.getpid()}.part"
        part.write_text(text)
        part.rename(file)
