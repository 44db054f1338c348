# SPDX-License-Identifier: Apache-2.0
"""Asks the compiler of the datapath about its headers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "kmod_ebpf" / "src"

_CHILD = """
import os, sys
os.environ["BCC_KERNEL_SOURCE"] = sys.argv[1]
from bcc import BPF
BPF(text=sys.stdin.read(), cflags=["-I" + sys.argv[1], "-DXM_FAMILY=" + sys.argv[2]])
"""


def refuted(claims: Mapping[str, int], family: int = 4) -> list[str]:
    """Those of the constant C expressions that do not have the value claimed. family: of the underlay."""
    # Included as in the datapath's main text: maps.h first.
    text = '#include "maps.h"\n#include "wire.h"\n'
    for i, (expression, value) in enumerate(claims.items()):
        text += f'_Static_assert(({expression}) == ({value}), "claim {i} is wrong");\n'
    cmd = [sys.executable, "-c", _CHILD, str(SOURCE), str(family)]
    done = subprocess.run(cmd, input=text, capture_output=True, text=True, timeout=60)
    found = [x for i, x in enumerate(claims) if f'"claim {i} is wrong"' in done.stderr]
    if done.returncode and not found:
        raise AssertionError(f"the headers do not compile:\n{done.stderr}")
    return found
