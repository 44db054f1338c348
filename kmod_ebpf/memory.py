# SPDX-License-Identifier: GPL-2.0-only
"""Prints what the datapath's tables take on the running kernel: python -m kmod_ebpf.memory."""

from __future__ import annotations

from . import loader


def table_bytes() -> dict[str, int]:
    """Bytes of each map as the kernel charges them (fdinfo, memlock). Needs root."""
    loaded = loader.load(loader.compile_object())
    try:
        sizes = {}
        for name, opened in loaded.maps.items():
            with open(f"/proc/self/fdinfo/{opened.fd}") as f:
                fields = dict(line.split(":", 1) for line in f if ":" in line)
            sizes[name] = int(fields["memlock"])
        return sizes
    finally:
        loaded.close()


if __name__ == "__main__":
    table = table_bytes()
    for name, size in sorted(table.items(), key=lambda item: -item[1]):
        print(f"{name:10} {size / 1e6:8.2f} MB")
    print(f"{'all':10} {sum(table.values()) / 1e6:8.2f} MB")
