# SPDX-License-Identifier: Apache-2.0
"""Loading: what a kernel lacks is said by name, and a failure leaves nothing behind."""

from __future__ import annotations

import base64
import os
import struct
from pathlib import Path

import pytest

from kmod_ebpf import loader

CALL, EXIT = 0x85, 0x95


def program(name: str, helper: int) -> dict[str, object]:
    insns = struct.pack("<BBhi", CALL, 0, 0, helper) + struct.pack("<BBhi", EXIT, 0, 0, 0)
    return {"name": name, "insns": base64.b64encode(insns).decode(), "relocations": []}


MAP = {"name": "conf", "type": 2, "key_size": 4, "value_size": 8, "max_entries": 1, "flags": 0}


@pytest.mark.root
def test_an_unknown_helper_is_named_and_nothing_stays_open():
    good = [program(name, 5) for name in loader.PROGRAMS[:-1]]
    obj = loader.Object([MAP], [*good, program(loader.PROGRAMS[-1], 9999)])
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(loader.LoadError) as e:
        loader.load(obj)
    assert "9999" in str(e.value.missing)
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("log", "missing"),
    [
        ("invalid func bpf_redirect_neigh#152", "bpf_redirect_neigh, Linux 5.10"),
        ("unknown func unknown#125", "bpf_ktime_get_boot_ns, Linux 5.8"),
        ("R1 invalid mem access 'scalar'", None),
    ],
)
def test_the_verifiers_words_are_understood(log, missing):
    assert loader._missing(log) == missing


@pytest.mark.root
def test_a_map_that_the_kernel_refuses():
    with pytest.raises(loader.LoadError, match="the map conf"):
        loader.load(loader.Object([MAP | {"type": 999}], []))


@pytest.mark.root
def test_the_cache_is_used_only_if_nobody_else_can_write_it(tmp_path, monkeypatch):
    runs = []

    def compiler() -> str:
        runs.append(1)
        return '{"maps": [], "programs": []}'

    monkeypatch.setattr(loader, "_run_compiler", compiler)
    loader.compile_object(tmp_path)
    loader.compile_object(tmp_path)
    assert len(runs) == 1
    (file,) = tmp_path.iterdir()
    file.chmod(0o666)
    loader.compile_object(tmp_path)
    assert len(runs) == 2


def test_a_damaged_cache_is_thrown_away(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(loader, "_run_compiler", lambda: '{"maps": []')
    with pytest.raises(loader.CompileError, match="damaged"):
        loader.compile_object(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_source_that_does_not_compile(tmp_path, monkeypatch):
    (tmp_path / "xmasq.c").write_text("int xmasq_encode(struct __sk_buff *skb) { return nonsense; }\n")
    (tmp_path / "include").symlink_to(loader.SOURCE / "include")
    monkeypatch.setattr(loader, "SOURCE", tmp_path)
    with pytest.raises(loader.CompileError, match="nonsense") as e:
        loader.compile_object(None)
    assert "\n" not in str(e.value)
