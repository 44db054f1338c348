# SPDX-License-Identifier: GPL-2.0-only
"""Child process: compiles the datapath with BCC and prints programs and maps as JSON.

A process of its own, because LLVM ends the whole process on some errors, keeps over 100 MB, and
writes its messages to file descriptor 2.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import struct
import sys
from pathlib import Path

LD_IMM64, PSEUDO_MAP_FD = 0x18, 1


def main() -> int:
    """Arguments: the main text, family (4 or 6), a held clock's time, then the programs."""
    text, family, clock, programs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    source = text.parent
    os.environ["BCC_KERNEL_SOURCE"] = str(source)
    try:
        from bcc import BPF, lib
    except ImportError as e:
        print(f"BCC's Python bindings are missing (Debian: python3-bpfcc): {e}", file=sys.stderr)
        return 3
    lib.bpf_table_name.restype = ctypes.c_char_p  # BCC 0.26 leaves it an int
    cflags = [f"-I{source}", f"-DXM_FAMILY={family}", "-Wno-unused-function", "-Wno-undefined-internal"]
    if clock:
        cflags.append(f"-DXM_CLOCK={clock}ULL")
    bpf = BPF(text=text.read_text(), cflags=cflags)
    maps, names = [], {}
    for i in range(lib.bpf_num_tables(bpf.module)):
        name = lib.bpf_table_name(bpf.module, i)
        names[lib.bpf_table_fd(bpf.module, name)] = name.decode()
        maps.append(
            {
                "name": name.decode(),
                "type": lib.bpf_table_type_id(bpf.module, i),
                "key_size": lib.bpf_table_key_size_id(bpf.module, i),
                "value_size": lib.bpf_table_leaf_size_id(bpf.module, i),
                "max_entries": lib.bpf_table_max_entries_id(bpf.module, i),
                "flags": lib.bpf_table_flags_id(bpf.module, i),
            }
        )
    progs = []
    for program in programs:
        insns = bytearray(bpf.dump_func(program))
        relocations = []
        for at in range(0, len(insns), 8):
            op, regs, off, imm = struct.unpack_from("<BBhi", insns, at)
            if op == LD_IMM64 and regs >> 4 == PSEUDO_MAP_FD:
                relocations.append((at, names[imm]))
                struct.pack_into("<BBhi", insns, at, op, regs, off, 0)
        progs.append({"name": program, "insns": base64.b64encode(insns).decode(), "relocations": relocations})
    json.dump({"maps": maps, "programs": progs}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
