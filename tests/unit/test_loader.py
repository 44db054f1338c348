# SPDX-License-Identifier: Apache-2.0
"""Loading: what a kernel lacks is said by name, and a failure leaves nothing behind."""

from __future__ import annotations

import base64
import errno
import os
import resource
import struct
from pathlib import Path
from typing import Any

import pytest

from kmod_ebpf import bpf, loader

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

    def compiler(_unit: loader.Unit, _family: int, _clock: int) -> str:
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
    monkeypatch.setattr(loader, "_run_compiler", lambda unit, family, clock: '{"maps": []')
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


def test_the_limit_of_locked_memory_is_raised_where_the_kernel_counts(monkeypatch: Any) -> None:
    """Before Linux 5.11 a map beyond the limit gets EPERM; a limit already gone means another reason."""
    limits = [(65536, 65536)]
    allowed = 1

    def call(cmd: int, attr: object) -> int:
        if limits[-1][0] == resource.RLIM_INFINITY and allowed:
            return 77
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(bpf, "_call", call)
    monkeypatch.setattr(resource, "getrlimit", lambda what: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda what, limit: limits.append(limit))
    assert bpf.btf_load(b"") == 77
    assert limits[1:] == [(resource.RLIM_INFINITY, resource.RLIM_INFINITY)]

    allowed = 0
    with pytest.raises(PermissionError):
        bpf.btf_load(b"")
    assert len(limits) == 2
