# SPDX-License-Identifier: Apache-2.0
"""xmasq-cni: reads environment and standard input, runs the command, answers in JSON (SPEC.md, section 2)."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any, NamedTuple

from . import config
from .config import VERSIONS
from .errors import DECODING_FAILURE, INCOMPATIBLE_VERSION, INVALID_ENVIRONMENT, IO_FAILURE, REFUSED, CniError
from .record import Attachment

_MAX_INPUT = 16 << 20
_DEBUG = "XMASQ_DEBUG"


class Command(NamedTuple):
    """A command: the module of this package that has it as run(), and what it is given.

    attachment: it is about one container; netns: which has to have a namespace. strict: see
    config.parse. since: the first version of the specification that has it.
    """

    module: str
    attachment: bool = True
    netns: bool = False
    strict: bool = True
    since: str = VERSIONS[0]


COMMANDS = {
    "ADD": Command("add", netns=True),
    "DEL": Command("delete", strict=False),
    "CHECK": Command("check", netns=True),
    "GC": Command("gc", attachment=False, strict=False, since="1.1.0"),
    "STATUS": Command("status", attachment=False, since="1.1.0"),
}


def main() -> int:
    """Runs what the environment asks for; returns the exit status."""
    version = VERSIONS[-1]
    try:
        command = os.environ.get("CNI_COMMAND", "")
        if command == "VERSION":
            answer: dict[str, Any] | None = _versions()
        else:
            raw = _input(command)
            if isinstance(raw, dict) and raw.get("cniVersion") in VERSIONS:
                version = raw["cniVersion"]
            answer = _run(command, raw)
    except Exception as e:
        error = _error(e)
        answer = {"cniVersion": version, "code": error.code, "msg": error.msg}
        if error.details:
            answer["details"] = error.details
        print(json.dumps(answer, indent=1))
        return 1
    if answer is not None:
        print(json.dumps(answer, indent=1))
    return 0


def _versions() -> dict[str, Any]:
    """VERSION: needs nothing, so it also works when a runtime gives nothing."""
    version = VERSIONS[-1]
    try:
        asked = json.loads(sys.stdin.buffer.read(_MAX_INPUT) or b"{}").get("cniVersion")
        version = asked if isinstance(asked, str) else version
    except (OSError, ValueError, AttributeError):
        pass
    return {"cniVersion": version, "supportedVersions": list(VERSIONS)}


def _input(command: str) -> Any:
    if command not in COMMANDS:
        allowed = ", ".join([*COMMANDS, "VERSION"])
        said = f'"{command}" is unknown' if command else "missing"
        raise CniError(INVALID_ENVIRONMENT, f"CNI_COMMAND: {said}, allowed is {allowed}")
    try:
        return json.loads(sys.stdin.buffer.read(_MAX_INPUT))
    except OSError as e:
        raise CniError(IO_FAILURE, f"cannot read the network configuration: {e.strerror}") from e
    except ValueError as e:
        raise CniError(DECODING_FAILURE, f"the network configuration is not JSON: {e}") from e


def _run(word: str, raw: Any) -> dict[str, Any] | None:
    command = COMMANDS[word]
    attachment = _attachment(command) if command.attachment else None
    network = config.parse(raw, strict=command.strict)
    if VERSIONS.index(network.version) < VERSIONS.index(command.since):
        raise CniError(
            INCOMPATIBLE_VERSION, f"cniVersion: {network.version} has no {word}, {command.since} has"
        )
    if os.geteuid() != 0:
        raise CniError(REFUSED, f"not root: only root can do {word}")
    if command.netns and attachment:
        _check_netns(attachment)
    module = importlib.import_module(f"{__package__}.{command.module}")
    run = module.run
    answer: dict[str, Any] | None = run(network, attachment) if attachment else run(network)
    return answer


def _attachment(command: Command) -> Attachment:
    env = {word: os.environ.get(f"CNI_{word}", "") for word in ("CONTAINERID", "NETNS", "IFNAME")}
    for word in ("CONTAINERID", "IFNAME", *(["NETNS"] if command.netns else [])):
        if not env[word]:
            raise CniError(INVALID_ENVIRONMENT, f"CNI_{word}: missing")
    try:
        config.container_id(env["CONTAINERID"])
    except ValueError as e:
        raise CniError(INVALID_ENVIRONMENT, f'CNI_CONTAINERID: "{env["CONTAINERID"]}": {e}') from e
    name = env["IFNAME"]
    if (
        len(name.encode(errors="surrogateescape")) > 15
        or name in (".", "..")
        or any(c in "/:" or c.isspace() for c in name)
    ):
        raise CniError(
            INVALID_ENVIRONMENT,
            f'CNI_IFNAME: "{name}" is not a device name: 1 to 15 bytes without "/", ":" or space',
        )
    return Attachment(env["CONTAINERID"], name, env["NETNS"])


def _check_netns(attachment: Attachment) -> None:
    try:
        here, there = os.stat("/proc/self/ns/net"), os.stat(attachment.netns)
    except OSError:
        return  # whoever enters it says so
    if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
        raise CniError(INVALID_ENVIRONMENT, f"CNI_NETNS: {attachment.netns} is the host's own namespace")


def _error(e: Exception) -> CniError:
    """What the runtime is told. Set XMASQ_DEBUG=1 for a traceback of what was not foreseen."""
    if os.environ.get(_DEBUG, "0") not in ("", "0"):
        import traceback

        traceback.print_exc()
    if isinstance(e, CniError):
        return e
    from .._errors import XmasqError

    if isinstance(e, XmasqError):
        return CniError(REFUSED, str(e))
    if isinstance(e, OSError):
        return CniError(IO_FAILURE, f"{e.filename}: {e.strerror}" if e.filename else str(e))
    if type(e).__name__ == "NetlinkError":  # not imported for this alone
        return CniError(REFUSED, f"the kernel refuses: {e}")
    return CniError(REFUSED, f"internal error: {type(e).__name__}: {e} (set {_DEBUG}=1 for the traceback)")
