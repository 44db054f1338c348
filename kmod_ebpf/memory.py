# SPDX-License-Identifier: GPL-2.0-only
"""Prints what the datapath's tables take on the running kernel: python -m kmod_ebpf.memory."""

from __future__ import annotations

from . import loader


def table_bytes(family: int = 4) -> dict[str, int]:
    """Bytes of each map as the kernel charges them (fdinfo, memlock). family: of the underlay. Needs root."""
    loaded = loader.load(loader.compile_object(family=family))
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
    tables = {family: table_bytes(family) for family in (4, 6)}
    print(f"{'MB':10} {'IPv4':>8} {'IPv6':>8}")
    for name in sorted(tables[4], key=lambda name: -tables[6][name]):
        print(f"{name:10} {tables[4][name] / 1e6:8.2f} {tables[6][name] / 1e6:8.2f}")
    print(f"{'all':10} {sum(tables[4].values()) / 1e6:8.2f} {sum(tables[6].values()) / 1e6:8.2f}")
