# SPDX-License-Identifier: Apache-2.0
"""The secret of a link comes from a file that nobody else can read, never from the command line."""

from __future__ import annotations

import os
import stat

from .._errors import InputError

LEAST, MOST = 16, 65536
_WORD = "secret-file"


def read_secret(path: str) -> bytes:
    """The 16 bytes that a secret file stands for: BLAKE2b of what is in it.

    The file must be a regular one of the caller's own, without access for group and others, and
    hold 16 to 65,536 bytes, not counting one newline at the end. Raises InputError.
    """
    from hashlib import blake2b

    try:
        # O_NONBLOCK: opening a FIFO would wait for somebody to write.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as e:
        raise InputError(_WORD, f'cannot open "{path}": {getattr(e, "strerror", None) or e}') from e
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(_WORD, f'"{path}" is not a regular file')
        if status.st_uid != os.geteuid():
            raise InputError(_WORD, f'"{path}" belongs to user {status.st_uid}; allowed is only your own')
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise InputError(
                _WORD, f'"{path}" has mode {mode:04o}; allowed is no access for group and others'
            )
        content = os.read(fd, MOST + 2)
    except OSError as e:
        raise InputError(_WORD, f'cannot read "{path}": {e.strerror}') from e
    finally:
        os.close(fd)
    content = content.removesuffix(b"\n")
    if not LEAST <= len(content) <= MOST:
        size = f"{len(content)}" if len(content) <= MOST else f"over {MOST}"
        raise InputError(_WORD, f'"{path}" holds {size} bytes; allowed is {LEAST} to {MOST}')
    return blake2b(content, digest_size=16).digest()
