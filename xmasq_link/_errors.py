# SPDX-License-Identifier: Apache-2.0
"""What can go wrong. The text of each exception is one line, meant for users."""

from __future__ import annotations


class XmasqError(Exception):
    """The kernel or the environment refused. The cause, if any, is in __cause__."""


class InputError(XmasqError):
    """A bad argument.

    argument: the word for it, as the command line has it ("id", "local", …).
    """

    def __init__(self, argument: str, text: str) -> None:
        super().__init__(f"{argument}: {text}")
        self.argument = argument
