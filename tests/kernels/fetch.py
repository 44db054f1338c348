# SPDX-License-Identifier: Apache-2.0
"""Gets kernels with apt, from suites that this machine does not use, and unpacks them.

apt runs with lists, a cache and sources of its own, so the machine's are not touched; the mirror and
everything else (proxies, say) are the machine's own. Nothing is installed.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .suites import KernelsError, NoKernelError, Series

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xmasq-kernels"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_LISTS_LAST = 24 * 3600
_WANTED = re.compile(r"\b(linux-(?:image|modules|binary|base)-[0-9][^ ,]*)")


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel. ``root`` holds boot/ and lib/modules/; ``release`` is what ``uname -r`` says."""

    series: Series
    version: str
    release: str
    root: Path

    @property
    def image(self) -> Path:
        """The bootable file; since 7.x packages have it beside the modules."""
        old = self.root / "boot" / f"vmlinuz-{self.release}"
        return old if old.exists() else self.modules / "vmlinuz"

    @property
    def modules(self) -> Path:
        """The directory that belongs at /lib/modules/<release>."""
        return self.root / "lib" / "modules" / self.release


def fetch(series: Series) -> Kernel:
    """The youngest kernel of a series, from the cache where it is there already.

    Without a network the last one that was fetched is good enough. Raises :class:`NoKernelError`.
    """
    if platform.machine() != "x86_64":
        raise NoKernelError(
            f"kernel {series.name}: guests run this machine's programs, so it must be an x86_64 one"
        )
    with _locked(series) as home:
        try:
            apt = _Apt(series, home)
            version = apt.newest("linux-image-amd64", series.prefix)
            root = home / version
            if not (root / ".complete").exists():
                _unpack(apt, version, root)
        except KernelsError as error:
            old = sorted(home.glob("*/.complete"), key=lambda path: path.stat().st_mtime)
            if not old:
                raise NoKernelError(str(error)) from None
            print(f"kernels: {series.name}: keeping the one in the cache ({error})", flush=True)
            root = old[-1].parent
    release = next((root / "lib" / "modules").iterdir()).name
    return Kernel(series, root.name, release, root)


@contextmanager
def _locked(series: Series) -> Iterator[Path]:
    home = CACHE / series.name
    home.mkdir(parents=True, exist_ok=True)
    with open(home / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield home


def _run(words: list[str], what: str, *, cwd: Path | None = None, timeout: float = 600) -> str:
    try:
        done = subprocess.run(
            words, cwd=cwd, capture_output=True, text=True, timeout=timeout, env={**os.environ, "LC_ALL": "C"}
        )
    except FileNotFoundError:
        raise KernelsError(f"{what}: {words[0]} is not installed (.ci/setup kernels)") from None
    except subprocess.TimeoutExpired:
        raise KernelsError(f"{what}: {words[0]} took over {timeout:g} s") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise KernelsError(f"{what}: {said[-1] if said else f'{words[0]} ended with {done.returncode}'}")
    return done.stdout


def _mirrors() -> tuple[str, str]:
    """The machine's mirrors: of the archive, and of its security part."""
    release = Path("/etc/os-release").read_text()
    found = re.search(r"^VERSION_CODENAME=(\w+)", release, re.MULTILINE)
    if not found:
        raise KernelsError("only Debian machines know where Debian's kernels are (no VERSION_CODENAME)")
    words = ["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)"]
    lines = [line.split() for line in _run([*words, "Created-By: Packages"], "apt").splitlines()]
    where = {suite: uri for suite, part, uri in lines if part == "main"}
    try:
        main = where[found[1]]
    except KeyError:
        raise KernelsError(f"apt knows no mirror of {found[1]}; is /etc/apt set up?") from None
    return main, where.get(f"{found[1]}-security", main)


class _Apt:
    """An apt of its own, which knows the suites of one series and no installed package."""

    def __init__(self, series: Series, home: Path) -> None:
        self.series = series
        for part in ("lists/partial", "archives/partial"):
            (home / "apt" / part).mkdir(parents=True, exist_ok=True)
        main, security = _mirrors()
        text = "".join(
            f"deb [signed-by={_KEYRING}] {security if suite.endswith('-security') else main} {suite} main\n"
            for suite in series.suites
        )
        apt = home / "apt"
        sources, stamp = apt / "sources.list", apt / "updated"
        self._options = [
            f"Dir::State={apt}",
            f"Dir::State::lists={apt}/lists",
            "Dir::State::status=/dev/null",
            f"Dir::Cache={apt}",
            f"Dir::Etc::sourcelist={sources}",
            "Dir::Etc::sourceparts=/dev/null",
            "APT::Sandbox::User=root",
            "APT::Architecture=amd64",
            "APT::Architectures=amd64",
            "APT::Get::List-Cleanup=true",
            "Acquire::Languages=none",
            "Acquire::Retries=3",
            "APT::Update::Error-Mode=any",
        ]
        fresh = stamp.exists() and time.time() - stamp.stat().st_mtime < _LISTS_LAST
        if fresh and sources.exists() and sources.read_text() == text:
            return
        sources.write_text(text)
        stamp.unlink(missing_ok=True)
        self("apt-get", "-q", "update")
        stamp.touch()

    def __call__(self, tool: str, *words: str, cwd: Path | None = None) -> str:
        options = [word for option in self._options for word in ("-o", option)]
        return _run([tool, *options, *words], f"kernel {self.series.name}", cwd=cwd)

    def newest(self, package: str, prefix: str) -> str:
        """The highest version that begins with ``prefix``."""
        lines = self("apt-cache", "madison", package).splitlines()  # the highest comes first
        versions = [line.split("|")[1].strip() for line in lines if line.count("|") == 2]
        for version in versions:
            if version.startswith(prefix):
                return version
        raise KernelsError(
            f"kernel {self.series.name}: {', '.join(self.series.suites)} offer no {package} {prefix}*"
        )

    def depends(self, package: str, version: str) -> str:
        """The package's Depends field."""
        shown = self("apt-cache", "show", "--no-all-versions", f"{package}={version}")
        found = re.search(r"^Depends: (.*)$", shown, re.MULTILINE)
        return found[1] if found else ""


def _unpack(apt: _Apt, version: str, root: Path) -> None:
    """Downloads the packages that make up a kernel, and unpacks them as ``root``."""
    print(f"kernels: {apt.series.name}: fetching {version}", flush=True)
    part = root.with_name(f".{version}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    todo, seen = [*_WANTED.findall(apt.depends("linux-image-amd64", version))], set[str]()
    while todo:
        package = todo.pop()
        if package not in seen:
            seen.add(package)
            todo += _WANTED.findall(apt.depends(package, version))
    for package in sorted(seen):
        apt("apt-get", "-q", "download", f"{package}={version}", cwd=part)
    for file in part.glob("*.deb"):
        _run(["dpkg", "-x", str(file), str(part)], f"unpacking {file.name}")
        file.unlink()
    if (part / "usr/lib/modules").exists():  # where the root's lib is a link to usr/lib
        (part / "lib").mkdir(exist_ok=True)
        (part / "usr/lib/modules").rename(part / "lib/modules")
    for one in (part / "lib/modules").iterdir():
        _run(["depmod", "-b", str(part), one.name], f"kernel {apt.series.name}")
    shutil.rmtree(root, ignore_errors=True)
    for old in root.parent.glob("*/.complete"):  # one of each series is enough
        shutil.rmtree(old.parent)
    part.rename(root)
    (root / ".complete").touch()
