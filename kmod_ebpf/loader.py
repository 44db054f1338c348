# SPDX-License-Identifier: GPL-2.0-only
"""Compiles the datapath (once for each source text, then from a cache) and loads it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from . import bpf, btf, cache, summed
from .maps import EVENT_LISTENERS

SOURCE = Path(__file__).parent / "src"
#: The programs that are attached, in the order of a packet's way. Those for an IPv6 underlay are called
#: the same here, and xmasq6_… in the kernel.
PROGRAMS = ("xmasq_encode", "xmasq_egress", "xmasq_ingress", "xmasq_arrive")
#: On links in external (collect metadata) mode, these stand in front; over IPv4 only.
METADATA = ("xmasq_encode_md", "xmasq_arrive_md")
#: Run by user space, loaded when it is needed.
FLUSH = "xmasq_flush"

#: What is compiled together: a main text, and its programs.
DATAPATH = ("xmasq.c", (*PROGRAMS, FLUSH, *METADATA))
CAPTURE_IN, CAPTURE_OUT = "xmasq_show_in", "xmasq_show_out"
CAPTURE = ("capture.c", (CAPTURE_IN, CAPTURE_OUT))
COUNT_IN, COUNT_OUT = "xmasq_count_in", "xmasq_count_out"
COUNT = ("count.c", (COUNT_IN, COUNT_OUT))
Unit = tuple[str, tuple[str, ...]]

_COMPILE_SECONDS = 120


class CompileError(Exception):
    """The datapath could not be compiled; the text is one line, .log what the compiler said."""

    def __init__(self, text: str, log: str = "") -> None:
        super().__init__(text)
        self.log = log


class LoadError(Exception):
    """The kernel refused a map or a program; the text is one line, .log the verifier's.

    missing: what this kernel would need to have, if that is the reason.
    """

    def __init__(self, text: str, log: str = "", missing: str | None = None) -> None:
        super().__init__(text)
        self.log = log
        self.missing = missing


#: The youngest helpers in use, and the kernels that brought them.
_SINCE = {"125": "bpf_ktime_get_boot_ns, Linux 5.8", "152": "bpf_redirect_neigh, Linux 5.10"}


def _missing(log: str) -> str | None:
    """What the verifier's log says the kernel lacks."""
    unknown = re.search(r"(?:unknown|invalid) func (\w+)#(\d+)", log)
    if unknown:
        return _SINCE.get(unknown[2], f"the BPF helper {unknown[1]} (number {unknown[2]})")
    return None


@dataclass(frozen=True)
class Object:
    """A compiled datapath, not yet in the kernel: as _compile.py prints it. family: 4 or 6."""

    maps: list[dict[str, int | str]]
    programs: list[dict[str, object]]
    family: int = 4


@dataclass
class Loaded:
    """A datapath in the kernel. It lives while a filter or one of these descriptors refers to it."""

    maps: dict[str, bpf.Map] = field(default_factory=dict)
    programs: dict[str, int] = field(default_factory=dict)

    def close(self) -> None:
        """Closes all descriptors."""
        for m in self.maps.values():
            m.close()
        for fd in self.programs.values():
            os.close(fd)
        self.maps, self.programs = {}, {}


def _digest() -> str:
    h = hashlib.sha256()
    for path in sorted([*SOURCE.rglob("*.[ch]"), Path(__file__).parent / "_compile.py"]):
        h.update(path.name.encode() + b"\0" + path.read_bytes())
    return h.hexdigest()


def kernel_name(name: str, family: int) -> str:
    """What a program of PROGRAMS, or FLUSH, is called in the kernel. family: of the underlay, 4 or 6."""
    return name if family == 4 else name.replace("xmasq_", f"xmasq{family}_", 1)


_PROGRAM_OF = {
    kernel_name(name, family): (name, family)
    for family in (4, 6)
    for name in (*PROGRAMS, *(METADATA if family == 4 else ()))
}


def program_of(kernel: str) -> tuple[str, int] | None:
    """The other way round: the program and the family that a name in the kernel stands for, if it is ours."""
    return _PROGRAM_OF.get(kernel)


def _run_compiler(unit: Unit, family: int, clock: int) -> str:
    env = dict(os.environ)
    package = str(Path(__file__).parent.parent)
    names = [kernel_name(name, family) for name in unit[1] if family == 4 or name not in METADATA]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [package, env.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [
                *(sys.executable, "-P", "-m", "kmod_ebpf._compile"),
                *(str(SOURCE / unit[0]), str(family), str(clock), *names),
            ],
            capture_output=True,
            text=True,
            timeout=_COMPILE_SECONDS,
            env=env,
        )
    except subprocess.TimeoutExpired:
        raise CompileError(f"compiling the datapath took over {_COMPILE_SECONDS} seconds") from None
    if done.returncode == 3:
        raise CompileError(done.stderr.strip().splitlines()[-1])
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        hint = errors[0] if errors else f"the compiler ended with status {done.returncode}"
        raise CompileError(f"the datapath does not compile: {hint}", done.stderr)
    return done.stdout


def compile_object(
    directory: Path | None = cache.DIRECTORY, unit: Unit = DATAPATH, family: int = 4, clock: int = 0
) -> Object:
    """What is compiled of a unit, from the cache if the sources have not changed.

    directory: of the cache, or None for none. family: of the underlay, 4 or 6. clock: for tests,
    the time in ns at which the programs' clock stands still; 0: it is the kernel's. Raises CompileError.
    """
    held = f"-{clock}" if clock else ""
    name = f"{_digest()}-{Path(unit[0]).stem}-{family}{held}.json"
    file = directory / name if directory else None
    text = cache.read(file) if file else None
    if text is None:
        text = _run_compiler(unit, family, clock)
        if file:
            cache.write(file, text)
    try:
        data = json.loads(text)
        return Object(data["maps"], data["programs"], family)
    except (ValueError, KeyError):
        if file:
            file.unlink(missing_ok=True)
        raise CompileError("the compiled datapath is damaged; try again") from None


def _create_map(spec: Mapping[str, int | str], sizes: Mapping[str, int]) -> bpf.Map:
    name = str(spec["name"])
    value_size = int(spec["value_size"])
    entries = int(spec["max_entries"])
    if name == "events":
        entries = EVENT_LISTENERS * bpf.possible_cpus()
    types = None
    if name == "pool":
        blob, key, value = btf.spin_lock_value(value_size)
        types = (bpf.btf_load(blob), key, value)
    try:
        return bpf.Map.create(
            name,
            int(spec["type"]),
            int(spec["key_size"]),
            value_size,
            sizes.get(name, entries),
            int(spec["flags"]),
            types,
        )
    finally:
        if types:
            os.close(types[0])


def load(
    obj: Object,
    sizes: Mapping[str, int] | None = None,
    programs: Sequence[str] = PROGRAMS,
    called: Mapping[str, str] | None = None,
    read_summed: bool = True,
) -> Loaded:
    """Creates the maps and loads programs.

    sizes: max_entries of maps other than the default. called: names of programs other than their own.
    read_summed: whether programs read skb->ip_summed, if this kernel lets them (summed.py).

    Raises LoadError, and then has left nothing behind.
    """
    loaded = Loaded()
    try:
        for spec in obj.maps:
            try:
                loaded.maps[str(spec["name"])] = _create_map(spec, sizes or {})
            except OSError as e:
                raise LoadError(f"the kernel refuses the map {spec['name']}: {e.strerror}") from e

        def load_one(name: str) -> None:
            its = (called or {}).get(name, "")
            loaded.programs[name] = load_program(obj, name, loaded.maps, its, read_summed)

        # The kernel verifies in the thread that loads; one program takes longer than the others together.
        with ThreadPoolExecutor(len(programs)) as pool:
            loading = [pool.submit(load_one, name) for name in programs]
        for one in loading:
            one.result()
    except BaseException:
        loaded.close()
        raise
    return loaded


def load_program(
    obj: Object, name: str, maps: Mapping[str, bpf.Map], called: str = "", read_summed: bool = True
) -> int:
    """Loads one program onto existing maps; returns its fd. called: if it shall have another name.

    read_summed: as for :func:`load`. Raises LoadError.
    """
    name = kernel_name(name, obj.family)
    prog = next(p for p in obj.programs if p["name"] == name)
    insns = bytearray(base64.b64decode(str(prog["insns"])))
    for at, map_name in prog["relocations"]:  # type: ignore[attr-defined]
        struct.pack_into("<i", insns, at + 4, maps[map_name].fd)
    if summed.wanted(insns):
        summed.patch(insns, summed.field() if read_summed else None)
    try:
        return bpf.prog_load(called or name, bytes(insns))
    except OSError as e:
        log = str(e.strerror)
        last = [x for x in log.strip().splitlines() if x and not x.startswith("processed")]
        line = last[-1] if last else os.strerror(e.errno or 0)
        raise LoadError(f"the kernel refuses the program {name}: {line}", log, _missing(log)) from e
