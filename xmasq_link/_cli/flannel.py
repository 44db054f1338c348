# SPDX-License-Identifier: Apache-2.0
"""xmasq flannel: the commands of flannel's extension backend."""

from __future__ import annotations

import os
from collections.abc import Sequence

import xmasq_link as api

from .command import Command
from .output import Options
from .secret import read_secret
from .words import Word, lease_ms, number, parse, text

_NAME = Word("name", "name", text, "NAME (1 to 15 bytes)")
START = (
    _NAME,
    Word("id", "vni", number(0, 16777215), "VNI (0 to 16777215)", also=("vni",)),
    Word("dstport", "port", number(1, 65535), "PORT (1 to 65535)"),
    Word("dev", "dev", text, "DEVICE (that reaches the peers)"),
    Word("lease", "lease_ms", lease_ms, "TIME (1s to 60s)"),
    Word("secret-file", "secret_file", text, "PATH (of a file that only you can read)"),
    Word("segment-bits", "seg_bits", number(4, 8), "4 to 8"),
    Word("key-bits", "key_bits", number(0, 3), "0 to 3"),
)
PEER = (_NAME,)
USAGE = """\
Usage: xmasq flannel pre-startup
       xmasq flannel post-startup [ [ name ] NAME ] [ id VNI ] [ dstport PORT ]
                     [ dev DEVICE ] [ lease TIME ] [ secret-file PATH ]
                     [ segment-bits BITS ] [ key-bits BITS ]
       xmasq flannel { subnet-add | subnet-remove } [ [ name ] NAME ]

Where: NAME := the link (default flannel.1), VNI (default 1),
       PORT (default 8472); the others are those of "link add".
flannel sets SUBNET and PUBLIC_IP in the environment.
"""


def pre_startup(words: Sequence[str], options: Options) -> None:
    """xmasq flannel pre-startup"""
    parse(words, (), "flannel pre-startup")
    print(api.flannel_data())


def post_startup(words: Sequence[str], options: Options) -> None:
    """xmasq flannel post-startup"""
    found = parse(words, START, "flannel post-startup", bare="name")
    if (path := found.pop("secret_file", None)) is not None:
        found["secret"] = read_secret(path)
    link = api.flannel_start(os.environ, **found)
    print(f"{link.name}: vni {link.vni} local {link.local} dev {link.dev} mtu {link.mtu}")
    if os.environ.get("IPV6SUBNET") not in (None, "", "::/0"):
        print("IPv6 pods of other nodes are not reached: flannel tells commands their IPv4 subnets only")


def subnet_add(words: Sequence[str], options: Options) -> None:
    """xmasq flannel subnet-add"""
    api.flannel_add(os.environ, **parse(words, PEER, "flannel subnet-add", bare="name"))


def subnet_remove(words: Sequence[str], options: Options) -> None:
    """xmasq flannel subnet-remove"""
    api.flannel_remove(os.environ, **parse(words, PEER, "flannel subnet-remove", bare="name"))


COMMANDS = (
    Command("pre-startup", pre_startup),
    Command("post-startup", post_startup, changes=True),
    Command("subnet-add", subnet_add, changes=True, whole=True),
    Command("subnet-remove", subnet_remove, changes=True, whole=True),
)
