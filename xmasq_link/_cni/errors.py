# SPDX-License-Identifier: Apache-2.0
"""Errors as the CNI specification has them (SPEC.md, section 2, "Error")."""

from __future__ import annotations

INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIG = 7
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50
LIMITED_CONNECTIVITY = 51
#: From 100 on they are the plugin's own.
REFUSED = 100
NOT_AS_EXPECTED = 101


class CniError(Exception):
    """What a command ends with: a code of the specification, one line, and details if there are any."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        # One line, whatever of a configuration it quotes.
        self.msg = "".join(c if c.isprintable() else repr(c)[1:-1] for c in msg)
        super().__init__(self.msg)
        self.code = code
        self.details = details


def invalid(key: str, text: str) -> CniError:
    """The network configuration has a bad value at this key."""
    return CniError(INVALID_CONFIG, f"{key}: {text}")
