# SPDX-License-Identifier: Apache-2.0
"""Many commands at once, and commands that are interrupted before they have begun."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.observe import until
from tests.e2e.test_cli import after_deletion, hooks, state
from tests.lab import ROOT, Host, Lab, patience, xmasq_json

pytestmark = pytest.mark.e2e

#: Adds and deletes links, of its own name and of one that all fight for; every exit status has to be
#: 0, or 2 with one line. With "by ip" devices are deleted behind xmasq's back, too.
WORKER = """
import contextlib, io, os, random, subprocess, sys
from xmasq_link._cli.main import main

name, number, local, rounds = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
random.seed(number)

def run(line):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main(["-n", name, *line.split()])
    assert (status, said.getvalue().count("\\n")) in ((0, 0), (2, 1)), (line, status, said.getvalue())
    return status

own = f"own{number}"
for at in range(rounds):
    assert run(f"link add {own} id {number} local {local} up") == 0
    run(f"link add same id 99 local {local} lease {random.randint(1, 60)}")
    run(f"link set {own} lease {random.randint(1, 60)} fastpath {random.choice(['on', 'off'])}")
    if random.random() < 0.3:
        subprocess.run(["ip", "-n", name, "link", "del", "same"], stderr=subprocess.DEVNULL)
    else:
        run("link del same")
    if random.random() < 0.2:
        subprocess.run(["ip", "-n", name, "link", "del", own], check=True)
    elif at < rounds - 1:
        assert run(f"link del {own}") == 0
    else:
        break
else:
    assert run(f"link add {own} id {number} local {local} up") == 0
"""


@pytest.fixture
def host():
    with Lab() as lab:
        yield lab.host()


def test_ten_at_once(host: Host):
    before = state(host)
    numbers = range(1, 11)
    words = [sys.executable, "-c", WORKER, host.name]
    workers = [host.lab.start([*words, str(number), host.address, "2"]) for number in numbers]
    for worker in workers:
        assert worker.communicate(timeout=patience(120)) == ("", "")
        assert worker.returncode == 0
    links = {link["ifname"] for link in xmasq_json(host, "link", "show")}
    assert links - {"same"} == {f"own{number}" for number in numbers}
    # All of them share one datapath, whole.
    assert len({tuple(sorted(hooks(host, name).items())) for name in links}) == 1
    assert hooks(host, "eth0").keys() == {"xmasq_ingress", "xmasq_egress"}
    for name in links:
        assert host.run([sys.executable, "-m", "xmasq_link", "link", "del", name]).stderr == ""
    assert after_deletion(host) == before


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command as it is installed, for the source tree."""
    path = tmp_path_factory.mktemp("launcher") / "xmasq"
    names = {
        "PYTHON": sys.executable,
        "LIBRARY": str(ROOT),
        "NAME": "xmasq",
        "MODULE": "xmasq_link._cli.main",
        "FUNCTION": "main",
    }
    defines = [f'-D{name}="{value}"' for name, value in names.items()]
    source = ROOT / "iproute_ext/launch.c"
    subprocess.run(["gcc", "-Wall", "-DHOLD_SIGNALS", *defines, "-o", path, source], check=True)
    return path


def holds(process: subprocess.Popen[str], signum: int) -> bool:
    """Whether a process that runs holds a signal back."""
    masks = re.findall(r"^SigBlk:\t(\w+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    return any(int(mask, 16) >> signum - 1 & 1 for mask in masks)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_python_starts(launcher, signum):
    """No traceback, and the exit status of a command that a signal has ended."""
    statuses = []
    for at in range(12):
        process = subprocess.Popen(
            [launcher, "link", "show"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        # Before the launcher itself runs, a signal ends it as any program.
        until(lambda process=process: holds(process, signum) or process.poll() is not None, "signals wait")
        time.sleep(at * patience(0.005))
        process.send_signal(signum)
        _, err = process.communicate(timeout=patience(30))
        assert err == ""
        statuses.append(process.returncode)
    assert set(statuses) <= {0, 128 + signum}
    assert 128 + signum in statuses


def test_launcher_passes_words_and_status(launcher):
    done = subprocess.run([launcher, "link", "frob", "two words"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("xmasq: frob: ")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([launcher, "-V"], capture_output=True, text=True, env=env, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("xmasq ")
