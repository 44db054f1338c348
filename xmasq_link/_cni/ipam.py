# SPDX-License-Identifier: Apache-2.0
"""Delegating to the plugin that gives addresses (SPEC.md, section 4, "Plugin Delegation")."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .config import Net, Network
from .errors import (
    DECODING_FAILURE,
    INCOMPATIBLE_VERSION,
    INVALID_CONFIG,
    INVALID_ENVIRONMENT,
    IO_FAILURE,
    UNKNOWN_CONTAINER,
)
from .errors import CniError as _Error

_TIMEOUT_S = 120.0


def delegate(
    command: str,
    network: Network,
    subnets: tuple[Net, ...] = (),
    *,
    attachment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Runs the IPAM plugin and returns its result, {} if it prints none.

    subnets: what it gives addresses from, where its configuration does not say. attachment: the
    environment of another attachment than the present one. Raises CniError with the plugin's own code.
    """
    ipam = dict(network.raw.get("ipam") or {})
    plugin = _find(str(ipam.get("type", "")))
    if subnets and "subnet" not in ipam and "ranges" not in ipam:
        ipam["ranges"] = [[{"subnet": str(net)}] for net in subnets]
        anywhere = [{"dst": "0.0.0.0/0" if net.version == 4 else "::/0"} for net in subnets]
        ipam.setdefault("routes", anywhere)
    raw = {**network.raw, "ipam": ipam}
    env = {**os.environ, **(attachment or {}), "CNI_COMMAND": command}
    try:
        return _run(plugin, raw, env)
    except _Error as e:
        if e.code != INCOMPATIBLE_VERSION or network.version != "1.1.0" or command in ("GC", "STATUS"):
            raise
        # An older one (Debian's host-local knows 1.0.0 at most): what differs does not matter to IPAM.
        return _run(plugin, {**raw, "cniVersion": "1.0.0"}, env)


def lacks(e: _Error) -> bool:
    """Whether a plugin refuses GC or STATUS because it is older than the command.

    The reference plugins then look for a container's id first, and say that this is unknown.
    """
    return e.code in (INCOMPATIBLE_VERSION, INVALID_ENVIRONMENT, UNKNOWN_CONTAINER)


def _find(name: str) -> Path:
    if not name or "/" in name:
        raise _Error(INVALID_CONFIG, f'ipam.type: "{name}" is not the name of a plugin')
    where = os.environ.get("CNI_PATH", "")
    if not where:
        raise _Error(INVALID_ENVIRONMENT, "CNI_PATH: missing; it says where the IPAM plugin is")
    for directory in where.split(":"):
        path = Path(directory, name)
        if directory and os.access(path, os.X_OK) and path.is_file():
            return path
    raise _Error(INVALID_CONFIG, f'ipam.type: there is no plugin "{name}" in CNI_PATH', where)


def _run(plugin: Path, raw: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    name = plugin.name
    try:
        done = subprocess.run(
            [plugin], input=json.dumps(raw).encode(), env=env, capture_output=True, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise _Error(IO_FAILURE, f"the IPAM plugin {name} took more than {_TIMEOUT_S:.0f} s") from None
    except OSError as e:
        raise _Error(IO_FAILURE, f"cannot run the IPAM plugin {name}: {e.strerror}") from e
    said = done.stderr.decode(errors="backslashreplace").strip()
    try:
        answer = json.loads(done.stdout) if done.stdout.strip() else {}
        if not isinstance(answer, dict):
            raise ValueError("not an object")
    except ValueError as e:
        raise _Error(DECODING_FAILURE, f"the IPAM plugin {name} answers no JSON: {e}", said) from e
    if done.returncode:
        code = answer.get("code")
        raise _Error(
            code if isinstance(code, int) else IO_FAILURE,
            f"{name}: {answer.get('msg') or f'exit code {done.returncode}'}",
            str(answer.get("details") or said),
        )
    return answer
