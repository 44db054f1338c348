# SPDX-License-Identifier: Apache-2.0
"""Prints the files that the tests load: with old kernels they go into a guest's memory, see image.py."""

from __future__ import annotations

import importlib
import os
import sys

#: What the tests import, the compiler included.
_MODULES = (
    "_pytest.junitxml",
    "bcc",
    "hypothesis.internal.conjecture.engine",
    "pyroute2",
    "pytest_randomly",
    "scapy.all",
    "xdist.plugin",
    "xdist.remote",
)


def main() -> None:
    """One path a line."""
    for name in _MODULES:
        importlib.import_module(name)
    with open("/proc/self/maps") as maps:
        files = {line.split(maxsplit=5)[5].strip() for line in maps if len(line.split()) > 5}
    for module in list(sys.modules.values()):
        files |= {str(getattr(module, name, None)) for name in ("__file__", "__cached__")}
    for file in sorted(files):
        if file.startswith("/") and os.path.isfile(file):
            print(os.path.realpath(file))


if __name__ == "__main__":
    main()
