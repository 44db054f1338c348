# SPDX-License-Identifier: Apache-2.0
"""A datapath that another version of the package has loaded: its tables are not read as if they were ours."""

from __future__ import annotations

import dataclasses

import pytest

from kmod_ebpf import bpf, loader
from xmasq_link import XmasqError
from xmasq_link._datapath import Datapath

PROGRAM = "xmasq_arrive"  # the least of them

pytestmark = pytest.mark.root


def found(changed: str = "", more: int = 0) -> Datapath | None:
    """What is made of a datapath with larger values in one table."""
    obj = loader.compile_object()
    maps = [
        {**spec, "value_size": int(spec["value_size"]) + (more if spec["name"] == changed else 0)}
        for spec in obj.maps
    ]
    loaded = loader.load(dataclasses.replace(obj, maps=maps), {"flows": 16, "links": 16}, [PROGRAM])
    try:
        return Datapath._open({PROGRAM: bpf.prog_info(loaded.programs[PROGRAM]).id}, 4)
    finally:
        loaded.close()


def test_ours_is_read() -> None:
    dp = found()
    assert dp is not None
    dp.close()


def test_anothers_is_refused_in_a_line() -> None:
    with pytest.raises(XmasqError, match="another version of xmasq has loaded") as e:
        found("links", 8)
    assert "\n" not in str(e.value)
