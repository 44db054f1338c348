# SPDX-License-Identifier: Apache-2.0
"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from pathlib import Path

_TOOLS = {
    "iperf3": ["iperf3", "--version"],
    "sockperf": ["sockperf", "--version"],
    "wrk": ["wrk", "--version"],
    "nginx": ["nginx", "-v"],
    "redis": ["redis-server", "--version"],
    "iproute2": ["ip", "-V"],
}


def _first_line(cmd: list[str]) -> str:
    try:
        done = subprocess.run(cmd, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "missing"
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[0] if lines else "unknown"


def _cpu_model() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.processor() or "unknown"


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "unknown"


def describe() -> dict[str, str]:
    """Machine, kernel and tools, as words."""
    kernel = platform.uname()
    vulnerabilities = Path("/sys/devices/system/cpu/vulnerabilities")
    mitigated = [
        f"{path.name}: {text}"
        for path in (sorted(vulnerabilities.iterdir()) if vulnerabilities.is_dir() else ())
        if (text := _read(str(path))) != "Not affected"
    ]
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cpu": f"{_cpu_model()}, {os.cpu_count()} CPUs",
        "kernel": f"{kernel.release} {kernel.machine}",
        "jit": _read("/proc/sys/net/core/bpf_jit_enable"),
        "clock": _read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "mitigations": "; ".join(mitigated) or "none needed",
        "load at the start": _read("/proc/loadavg"),
    } | {name: _first_line(cmd) for name, cmd in _TOOLS.items()}
