# SPDX-License-Identifier: GPL-2.0-only
"""Programs beside the datapath: those that show a link's packets (src/capture.c) or count them (count.c)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from . import bpf, loader
from .maps import Conf, CountedKey

_FIRST = bytes(4)


def load(conf: Conf, snaplen: int, called: Mapping[str, str]) -> loader.Loaded:
    """Programs and maps for one capture, attached to nothing yet.

    conf: the datapath's settings. snaplen: bytes of a packet that are shown at most. called: names
    for the programs. Raises CompileError, LoadError.
    """
    loaded = loader.load(
        loader.compile_object(unit=loader.CAPTURE),
        {"frames": bpf.possible_cpus()},
        loader.CAPTURE[1],
        called,
    )
    loaded.maps["conf"].update(_FIRST, conf.raw())
    loaded.maps["capture"].update(_FIRST, snaplen.to_bytes(4, "little"))
    return loaded


def dropped(loaded: loader.Loaded) -> int:
    """How many packets were not shown because nobody had read the ones before in time."""
    raw = loaded.maps["dropped"].lookup(_FIRST) or b""
    return sum(memoryview(raw).cast("Q")) if raw else 0


def load_count(conf: Conf, called: Mapping[str, str]) -> loader.Loaded:
    """The same for programs that count by source and destination."""
    loaded = loader.load(loader.compile_object(unit=loader.COUNT), None, loader.COUNT[1], called)
    loaded.maps["conf"].update(_FIRST, conf.raw())
    return loaded


def counted(loaded: loader.Loaded) -> Iterator[tuple[CountedKey, int, int]]:
    """Keys, packets and bytes so far."""
    for key, raw in loaded.maps["counted"].items():
        words = memoryview(raw).cast("Q")
        yield CountedKey.parse(key), sum(words[::2]), sum(words[1::2])
