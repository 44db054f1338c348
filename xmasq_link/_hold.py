# SPDX-License-Identifier: Apache-2.0
"""Hold-down: how long a new datapath must not give or take keys (invariant I2).

An earlier datapath may have given keys that their holders still use. What can be known about it:
this boot's records under /run/xmasq, one for each namespace that had a datapath; and, without a
record, that nothing before this boot lives longer than the longest lease. Another machine that had
the VTEP address leaves no trace here: against that, senders never use one key of a peer for two
flows within lease and guard (kmod_ebpf/src/control.h, txkeys).
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

from ._netns import cookie

RUN = Path("/run/xmasq")
LEASE_MIN_MS, LEASE_MAX_MS, LEASE_DEFAULT_MS = 1000, 60_000, 10_000


def guard_ms(lease_ms: int) -> int:
    """How long after a lease's end packets may still be under way, in ms."""
    return max(2000, lease_ms // 2)


def now_ns() -> int:
    """Time since boot, suspended time included: the datapath's clock."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Hold:
    """Boot times in ns before which the datapath gives (rx) and takes (tx) no key."""

    rx_ns: int
    tx_ns: int


def _path(family: int) -> Path:
    # Each family of the underlay has a datapath, and keys, of its own.
    return RUN / (cookie() if family == 4 else f"{cookie()}-{family}")


def read(family: int = 4) -> Hold:
    """The hold-down for a datapath that starts now in the present namespace. family: of its underlay."""
    now = now_ns()
    try:
        record = json.loads(_path(family).read_text())
        lease = int(record["lease_ms"])
        removed = record.get("removed_ns")
        end = now if removed is None else int(removed)  # None: it went without telling
    except FileNotFoundError:
        lease, end = LEASE_MAX_MS, 0  # of the boot before, at the latest
    except (ValueError, KeyError, TypeError, OSError):
        lease, end = LEASE_MAX_MS, now
    guard = guard_ms(lease)
    return Hold(end + (lease + guard) * 1_000_000, end + guard * 1_000_000)


def _write(family: int, lease_ms: int, removed_ns: int | None) -> None:
    path = _path(family)
    RUN.mkdir(mode=0o755, exist_ok=True)
    part = RUN / f".{path.name}"
    part.write_text(json.dumps({"lease_ms": lease_ms, "removed_ns": removed_ns}))
    part.rename(path)


def live(lease_ms: int, family: int = 4) -> None:
    """Notes that a datapath with leases up to this many ms is in use here. family: of its underlay.

    Raises OSError: without the record a later start could not know.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        lease_ms = max(lease_ms, int(json.loads(_path(family).read_text())["lease_ms"]))
    _write(family, lease_ms, None)


def removed(family: int = 4) -> None:
    """Notes that the datapath has just been removed; forgets those that are long gone."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        _write(family, int(json.loads(_path(family).read_text())["lease_ms"]), now_ns())
    longest = (LEASE_MAX_MS + guard_ms(LEASE_MAX_MS)) * 1_000_000
    for path in RUN.iterdir() if RUN.is_dir() else ():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads(path.read_text())["removed_ns"] + longest < now_ns():
                path.unlink()
