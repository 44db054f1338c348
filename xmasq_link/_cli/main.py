# SPDX-License-Identifier: Apache-2.0
"""The entry point: options, the object, its command; and what becomes of errors and signals."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from .._errors import InputError, XmasqError
from .command import Command, Exit
from .interrupt import Interrupted, Signals
from .output import Options, one_line
from .words import HELP_WORDS, HelpWanted, pick

EXIT_REFUSED, EXIT_INPUT, EXIT_SIGNAL = 1, 2, 128
_SIGPIPE = 13
_DEBUG = "XMASQ_DEBUG"

#: What follows an option that has a value, for errors.
_VALUES = {"netns": "NAME (of a network namespace) or a path", "batch": "FILE, or - for standard input"}
_COLOR = ("always", "auto", "never")
#: Each is a module of this package; an abbreviation means the first that fits.
OBJECTS = (
    "link",
    "flow",
    "key",
    "peer",
    "flush",
    "attach",
    "detach",
    "capture",
    "agent",
    "explain",
    "doctor",
    "monitor",
    "metrics",
    "flannel",
    "top",
)
#: In the order in which abbreviations are looked up (that of `ip`), with the field of Options.
OPTIONS = {
    "statistics": "stats",
    "stats": "stats",
    "details": "details",
    "oneline": "oneline",
    "force": "force",
    "batch": "batch",
    "brief": "brief",
    "json": "json",
    "pretty": "pretty",
    "color": "color",
    "netns": "netns",
    "Version": "version",
    "version": "version",
    "help": "help",
}
USAGE = """\
Usage: xmasq [ OPTIONS ] OBJECT { COMMAND | help }
       xmasq [ -V ]

where  OBJECT  := { link | flow | key | peer | flush | attach | detach |
                    capture | explain | doctor | monitor | metrics | top |
                    agent | flannel }
       OPTIONS := { -n[etns] NAME | -j[son] | -p[retty] | -s[tatistics] |
                    -d[etails] | -o[neline] | -br[ief] | -c[olor][=WHEN] |
                    -b[atch] FILE | -force }

  link    the links: add, delete, set, show
  flow    what this host encodes: show
  key     what this host decodes: show
  peer    the other hosts that speak xmasq: show
  flush   end flows and keys before their time
  attach  make a link of an existing vxlan device
  detach  make an attached link a plain vxlan device again
  capture see the packets of a link, fast path included
  explain why a flow is encoded, or is not
  doctor  what on this host keeps xmasq from working, or from being fast
  monitor what happens, while it happens
  metrics counters and states for Prometheus
  top     links, peers and flows by how much goes through them
  agent   keep a node of a CNI network in step with the others
  flannel the commands of flannel's extension backend

xmasq OBJECT help says more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    argv: the words behind the program's name, by default the process's own. 0: done; 1: the
    environment refused; 2: bad input, or the kernel refused (as with `ip`); 128 and a signal's
    number: ended by it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with Signals(last=argv is None) as signals:
            status = _run(words, signals)
            if sys.stdout is not None:
                sys.stdout.flush()
        return status
    except BaseException as e:
        return _report(e)


def _report(e: BaseException) -> int:
    """Says what ended a command; returns the exit status."""
    if os.environ.get(_DEBUG, "0") not in ("", "0") and not isinstance(e, SystemExit):
        import traceback

        traceback.print_exc()
    status, line = _verdict(e)
    _drop_output()
    if line and sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"xmasq: {one_line(line)}", file=sys.stderr)
    return status


def _verdict(e: BaseException) -> tuple[int, str]:
    """Exit status and line for what ended a command."""
    match e:
        case Interrupted():
            return EXIT_SIGNAL + e.signum, ""
        case KeyboardInterrupt():
            return EXIT_SIGNAL + 2, ""
        case BrokenPipeError():
            return EXIT_SIGNAL + _SIGPIPE, ""
        case Exit():
            return e.status, ""
        case InputError():
            return EXIT_INPUT, str(e)
        case XmasqError() if isinstance(e.__cause__, PermissionError) and os.geteuid() != 0:
            return EXIT_INPUT, "not root: only root can look into the datapath"
        case XmasqError():
            # As with `ip`: 2 for an error that the kernel reported.
            return (EXIT_INPUT if _by_netlink(e) else EXIT_REFUSED), str(e)
        case OSError():
            return EXIT_REFUSED, f"{e.filename}: {e.strerror}" if e.filename else e.strerror or str(e)
    return EXIT_REFUSED, f"internal error: {type(e).__name__}: {e} (set {_DEBUG}=1 for the traceback)"


def _by_netlink(e: XmasqError) -> bool:
    cause = type(e.__cause__)
    return cause.__module__.startswith("pyroute2.") and cause.__name__ == "NetlinkError"


def _drop_output() -> None:
    """Lets go of output that nobody can take, or Python would complain about it at its end."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), sys.stdout.fileno())


def _run(words: list[str], signals: Signals) -> int:
    """Runs what the words say; returns the exit status if there is no exception to tell it."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise InputError(word, "not valid UTF-8") from None
    if words[:1] == ["--complete"]:
        from .complete import candidates

        print("\n".join(candidates(words[1:], OBJECTS, OPTIONS)))
        return 0
    options, rest, ask = _options(words)
    if ask == "version":
        print(f"xmasq {_version()}")
    elif ask == "help" or (rest and rest[0] in HELP_WORDS):
        print(USAGE, end="")
    elif options.batch is None:
        _object(rest, options, signals)
    elif rest:
        raise InputError(rest[0], "not allowed: -batch takes its commands from the file")
    else:
        return _batch(options, signals)
    return 0


def _batch(options: Options, signals: Signals) -> int:
    """Runs the commands of a file, one on each line, as `ip -batch` does: the first failure ends it,
    unless there is -force. Returns the exit status."""
    import shlex

    assert options.batch is not None
    status = 0
    with contextlib.ExitStack() as stack:
        try:
            file = sys.stdin if options.batch == "-" else stack.enter_context(open(options.batch))
        except OSError as e:
            raise InputError("batch", f'cannot open "{options.batch}": {e.strerror}') from e
        number, line = 0, ""
        for number, text in enumerate(file, 1):
            line += text
            if line.endswith("\\\n"):
                line = line[:-2] + " "
                continue
            whole, line = line, ""
            try:
                try:
                    words = shlex.split(whole, comments=True)
                except ValueError as e:
                    raise InputError("batch", f"{e}") from e
                if words:
                    _object(words, options, signals)
            except (XmasqError, OSError, Exit) as e:
                if isinstance(e, BrokenPipeError):
                    raise
                _report(e)
                print(f"Command failed {options.batch}:{number}", file=sys.stderr)
                status = EXIT_REFUSED
                if not options.force:
                    break
    return status


def _object(rest: list[str], options: Options, signals: Signals) -> None:
    """Runs one command: its object, and the words behind."""
    if not rest:
        raise InputError("OBJECT", f'missing; allowed are {", ".join(OBJECTS)}, or "help"')
    name = pick(rest[0], OBJECTS)
    if name is None:
        raise InputError(rest[0], f'unknown object; allowed are {", ".join(OBJECTS)}, or "help"')
    module = importlib.import_module(f"{__package__}.{name}")
    try:
        command, rest = _command(name, module, rest[1:])
        if rest and rest[0] in HELP_WORDS:
            raise HelpWanted
        with contextlib.ExitStack() as stack:
            if command.changes and os.geteuid() != 0:
                raise InputError("not root", f'only root can do "{name} {command.name}'.rstrip() + '"')
            if command.whole:
                stack.enter_context(signals.held())
            if options.netns is not None:
                from xmasq_link import netns

                stack.enter_context(netns(options.netns))
            command.run(rest, options)
    except HelpWanted:
        print(module.USAGE, end="")


def _options(words: list[str]) -> tuple[Options, list[str], str]:
    """The words before the object; returns also the rest, and "version" or "help" if asked for."""
    given: dict[str, Any] = {}
    ask, at = "", 0
    while at < len(words) and words[at].startswith("-") and not ask:
        word = words[at]
        at += 1
        short, equals, when = word.removeprefix("-").removeprefix("-").partition("=")
        full = pick(short, OPTIONS)
        if full is None or (equals and full != "color"):
            allowed = ", ".join(f"-{name}" for name in OPTIONS if name not in ("stats", "version"))
            raise InputError(word, f"unknown option; allowed are {allowed}")
        field = OPTIONS[full]
        if field in ("version", "help"):
            ask = field
        elif field == "color":
            if equals and when not in _COLOR:
                raise InputError("color", f'"{when}" is unknown; allowed is {" or ".join(_COLOR)}')
            given[field] = when != "never" and (when != "auto" or sys.stdout.isatty())
        elif field not in _VALUES:
            given[field] = True
        elif field in given:
            raise InputError(field, "given twice")
        elif at == len(words):
            raise InputError(field, f"a value is missing; allowed is {_VALUES[field]}")
        else:
            given[field] = words[at]
            at += 1
    return Options(**given), words[at:], ask


def _command(name: str, module: ModuleType, rest: list[str]) -> tuple[Command, list[str]]:
    """The command that is meant, and the words behind it."""
    commands: tuple[Command, ...] = module.COMMANDS
    if not commands[0].name:
        return commands[0], rest
    if not rest:
        return next(c for c in commands if c.name == "show"), []
    if rest[0] in HELP_WORDS:
        raise HelpWanted
    for command in commands:
        if pick(rest[0], (command.name, *command.also)):
            return command, rest[1:]
    allowed = ", ".join(c.name for c in commands)
    raise InputError(rest[0], f'unknown command of "{name}"; allowed are {allowed}, or "help"')


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("xmasq")
    except PackageNotFoundError:  # run from a source tree
        return "(not installed)"
