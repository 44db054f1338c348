# SPDX-License-Identifier: Apache-2.0
"""xmasq attach: makes a link of a vxlan device that somebody else has made."""

from __future__ import annotations

from collections.abc import Sequence

import xmasq_link as api

from .command import Command
from .output import Options
from .secret import read_secret
from .words import Word, lease_ms, number, parse, require, text

GRAMMAR = (
    Word("name", "name", text, "NAME (of a vxlan device)"),
    Word("dev", "dev", text, "DEVICE (that reaches the peers)"),
    Word("local", "local", text, "ADDR (an IPv4 address of this host)"),
    Word("lease", "lease_ms", lease_ms, "TIME (1s to 60s)"),
    Word("secret-file", "secret_file", text, "PATH (of a file that only you can read)"),
    Word("segment-bits", "seg_bits", number(4, 8), "4 to 8"),
    Word("key-bits", "key_bits", number(0, 3), "0 to 3"),
)
USAGE = """\
Usage: xmasq attach [ name ] NAME [ dev DEVICE ] [ local ADDR ] [ lease TIME ]
                    [ secret-file PATH ] [ segment-bits BITS ]
                    [ key-bits BITS ]

Where: NAME   := a vxlan device, made by anybody
       DEVICE := the underlay; by default the one that NAME sends through, or
                 that owns its local address
       ADDR   := the VTEP address, for a device without a local address
       The others are those of "link add".
"""


def attach(words: Sequence[str], options: Options) -> None:
    """xmasq attach"""
    found = parse(words, GRAMMAR, "attach", bare="name")
    require(found, GRAMMAR, "attach", "name")
    if (path := found.pop("secret_file", None)) is not None:
        found["secret"] = read_secret(path)
    api.attach_link(found.pop("name"), **found)


#: An object that is its own command.
COMMANDS = (Command("", attach, changes=True),)
