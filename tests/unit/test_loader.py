# SPDX-License-Identifier: Apache-2.0
"""Loading: what a kernel lacks is said by name, and a failure leaves nothing behind."""

from __future__ import annotations

import base64
import errno
import os
import resource
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmod_ebpf import bpf, loader, summed

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


# --- skb->ip_summed (summed.py) -----------------------------------------------------------------

_TYPES = Path("/sys/kernel/btf/vmlinux")
FIELD = summed.Field(cast=4711, offset=128, mask=0x60, shift=5)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a new process."""
    monkeypatch.delenv("XMASQ_IP_SUMMED", raising=False)
    summed.field.cache_clear()
    yield
    summed.field.cache_clear()


@pytest.mark.root
@pytest.mark.usefixtures("fresh")
def test_programs_see_ip_summed_where_the_kernel_can_show_it():
    """No kernel that could has the slower programs unnoticed."""
    if not _TYPES.exists():
        pytest.skip("this kernel has no type information (BTF)")
    assert (summed.field(None) is not None) == (b"\0bpf_cast_to_kern_ctx\0" in _TYPES.read_bytes())


def reading(register: int) -> bytearray:
    """What the compiler makes of ip_summed(), with the value in a register, between other instructions."""
    other = struct.pack("<BBhi", 0xB7, 9, 0, 1)
    return bytearray(
        other
        + struct.pack("<BBhi", CALL, 0, 0, summed._PLACE)
        + struct.pack("<BBhi", 0x71, register, 0, 0)
        + struct.pack("<BBhi", 0x57, register, 0, summed._PLACE)
        + struct.pack("<BBhi", 0x77, register, 0, 0)
        + other
    )


@pytest.mark.parametrize("register", [0, 7])
def test_a_program_is_made_to_read_the_field(register):
    code = reading(register)
    assert summed.wanted(code)
    summed.patch(code, FIELD)
    assert not summed.wanted(code)
    assert list(struct.iter_unpack("<BBhi", code))[1:-1] == [
        (CALL, 0x20, 0, 4711),  # BPF_PSEUDO_KFUNC_CALL
        (0x71, register, 128, 0),
        (0x57, register, 0, 0x60),
        (0x77, register, 0, 5),
    ]


@pytest.mark.parametrize("register", [0, 7])
def test_or_to_ask_the_helper(register):
    code = reading(register)
    summed.patch(code, None)
    assert not summed.wanted(code)
    assert list(struct.iter_unpack("<BBhi", code))[1:-1] == [
        (0xB7, 0, 0, 0),
        (0xB7, register, 0, 2),  # CHECKSUM_COMPLETE
        (0x57, register, 0, 3),
        (0x77, register, 0, 0),
    ]


@pytest.mark.parametrize("family", [4, 6])
def test_the_programs_that_move_checksums_want_to_see_it(family):
    obj = loader.compile_object(family=family)
    wanting = {
        str(p["name"]) for p in obj.programs if summed.wanted(bytearray(base64.b64decode(str(p["insns"]))))
    }
    names = ["xmasq_encode", "xmasq_ingress", *(["xmasq_encode_md"] if family == 4 else [])]
    assert wanting == {loader.kernel_name(name, family) for name in names}


@pytest.mark.usefixtures("fresh")
def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("XMASQ_IP_SUMMED", "0")
    monkeypatch.setattr(summed, "_find", lambda directory: pytest.fail("it looks all the same"))
    assert summed.field() is None


@pytest.mark.usefixtures("fresh")
def test_a_kernel_that_refuses_the_trial(monkeypatch):
    def refuse(name, insns):
        raise OSError(errno.EACCES, "not allowed")

    monkeypatch.setattr(summed, "_find", lambda directory: FIELD)
    monkeypatch.setattr(bpf, "prog_load", refuse)
    assert summed.field() is None


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("missing", ["types", "libbpf"])
def test_without_what_it_needs_nothing_is_found_or_kept(monkeypatch, tmp_path, missing):
    def no_library(name):
        raise OSError(f"{name}: cannot open shared object file")

    if missing == "types":
        monkeypatch.setattr(summed, "_TYPES", tmp_path / "none")
    else:
        monkeypatch.setattr("ctypes.CDLL", no_library)
    assert summed.field(tmp_path / "cache") is None
    assert not (tmp_path / "cache").exists()


def test_what_is_no_type_information(monkeypatch, tmp_path):
    (tmp_path / "types").write_bytes(b"nonsense")
    monkeypatch.setattr(summed, "_TYPES", tmp_path / "types")
    assert summed._look() is None


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Grows with each look at the type information, which finds the field. The kernel has a build ID."""
    looks: list[int] = []
    monkeypatch.setattr(summed, "_look", lambda: looks.append(1) or FIELD)
    for name, content in (("_NOTES", summed._BUILD_ID + b"x" * 20), ("_TYPES", b"types")):
        (tmp_path / name).write_bytes(content)
        monkeypatch.setattr(summed, name, tmp_path / name)
    return looks


@pytest.mark.root
def test_the_field_is_looked_for_once_for_each_kernel(looked, tmp_path):
    kept = tmp_path / "cache"
    assert [summed._find(kept) for _ in range(2)] == [FIELD, FIELD]
    assert len(looked) == 1
    summed._NOTES.write_bytes(summed._BUILD_ID + b"y" * 20)
    assert summed._find(kept) == FIELD
    assert len(looked) == 2
    assert len(list(kept.iterdir())) == 2
    for file in kept.iterdir():
        file.chmod(0o666)  # anybody may have written it
    assert summed._find(kept) == FIELD
    assert len(looked) == 3


@pytest.mark.root
@pytest.mark.parametrize("text", ["", "{", "[1]", '{"cast": 1}', "7"])
def test_a_damaged_note_is_made_again(looked, tmp_path, text):
    kept = tmp_path / "cache"
    summed._find(kept)
    (file,) = kept.iterdir()
    file.write_text(text)
    assert [summed._find(kept) for _ in range(2)] == [FIELD, FIELD]
    assert len(looked) == 2


@pytest.mark.root
def test_a_kernel_without_a_build_id_is_looked_at_each_time(looked, tmp_path):
    summed._NOTES.write_bytes(b"nothing")
    assert [summed._find(tmp_path / "cache") for _ in range(2)] == [FIELD, FIELD]
    assert len(looked) == 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.root
def test_that_a_kernel_has_no_such_function_is_kept_too(looked, tmp_path, monkeypatch):
    looks = []
    monkeypatch.setattr(summed, "_look", lambda: looks.append(1))
    assert [summed._find(tmp_path / "cache") for _ in range(2)] == [None, None]
    assert len(looks) == 1
