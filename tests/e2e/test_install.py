# SPDX-License-Identifier: Apache-2.0
"""What `make install` and `make wheel` make works without the source tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import ROOT, Host, Lab

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ADD = "link add xm0 type xmasq id 42 local 192.0.2.1"
#: Everything that must be there, below the prefix.
FILES = (
    "bin/xmasq",
    "bin/xmasq-cni",
    "lib/udev/rules.d/90-xmasq.rules",
    "share/man/man8/xmasq.8",
    "share/man/man8/ip-link-xmasq.8",
    "share/bash-completion/completions/xmasq",
    "share/zsh/site-functions/_xmasq",
)


def run(*words: str | Path, **env: str) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | env,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def make(target: str, **variables: str | Path) -> str:
    words = [f"{name}={value}" for name, value in variables.items()]
    return run("make", "-s", "-C", ROOT / "iproute_ext", target, *words)


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab() as lab:
        yield lab.host()


def works(host: Host, xmasq: Path) -> None:
    run(xmasq, "-n", host.name, *ADD.split(), "up")
    (link,) = json.loads(run(xmasq, "-n", host.name, "-j", "link", "show"))
    assert (link["ifname"], link["linkinfo"]["info_data"]["id"]) == ("xm0", 42)
    run(xmasq, "-n", host.name, "link", "del", "xm0")


def test_make_install(host, tmp_path):
    prefix, lib = tmp_path / "usr", tmp_path / "iplib"
    make("install", PREFIX=prefix, IP_LIB_DIR=lib)
    for name in FILES:
        assert (prefix / name).is_file(), name
    works(host, prefix / "bin/xmasq")
    # The plugin knows where the command is.
    run("ip", "-n", host.name, *ADD.split(), IP_LIB_DIR=str(lib))
    assert "xm0" in run(prefix / "bin/xmasq", "-n", host.name, "-br", "link")
    run(prefix / "bin/xmasq", "-n", host.name, "link", "del", "xm0")
    assert "Usage" in run("ip", "link", "help", "xmasq", IP_LIB_DIR=str(lib))
    make("uninstall", PREFIX=prefix, IP_LIB_DIR=lib)
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


def test_make_install_for_a_package(tmp_path):
    """With DESTDIR nothing lands elsewhere, the plugin where this machine's ip looks, and no file
    knows the directory."""
    make("install", DESTDIR=tmp_path, PREFIX="/usr")
    for name in FILES:
        assert (tmp_path / "usr" / name).is_file(), name
    (plugin,) = tmp_path.rglob("link_xmasq.so")
    assert str(plugin.parent).removeprefix(str(tmp_path)).encode() in Path("/sbin/ip").read_bytes()
    assert (tmp_path / "usr/lib/xmasq/kmod_ebpf/src/xmasq.c").is_file()
    ours = [tmp_path / "usr" / name for name in FILES] + [plugin]
    ours += (tmp_path / "usr/lib/xmasq/xmasq_link").rglob("*.pyc")
    assert [path for path in ours if str(tmp_path).encode() in path.read_bytes()] == []
    make("uninstall", DESTDIR=tmp_path, PREFIX="/usr")
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


def test_wheel_and_source_archive(host, tmp_path):
    run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (source,) = (tmp_path / "dist").glob("*.tar.gz")
    datapath = {f"kmod_ebpf/src/{path.name}" for path in (ROOT / "kmod_ebpf/src").glob("*.[ch]")}
    shared = {"link_xmasq.c", "launch.c", "xmasq.8", "ip-link-xmasq.8", "_xmasq"}
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert datapath <= set(names)
    assert shared <= {name.rpartition("/")[2] for name in names}
    with tarfile.open(source) as tar:
        names = [name.partition("/")[2] for name in tar.getnames()]
    assert datapath <= set(names)
    assert shared <= {name.rpartition("/")[2] for name in names}

    venv = tmp_path / "venv"
    run("/usr/bin/python3", "-m", "venv", "--system-site-packages", venv)
    run(venv / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel)
    works(host, venv / "bin/xmasq")
    # The plugin is built from what the wheel brings.
    run("make", "-s", "-C", venv / "share/xmasq/iproute_ext", "plugin", f"BUILD={tmp_path}")
    env = {"IP_LIB_DIR": str(tmp_path), "XMASQ": str(venv / "bin/xmasq")}
    run("ip", "-n", host.name, *ADD.split(), **env)
    run(venv / "bin/xmasq", "-n", host.name, "link", "del", "xm0")
