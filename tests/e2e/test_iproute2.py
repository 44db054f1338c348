# SPDX-License-Identifier: Apache-2.0
"""The iproute2 plugin, with this machine's own `ip`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import ROOT, Host, Lab, xmasq_json
from xmasq_link._cli import linkwords

pytestmark = pytest.mark.e2e

REFUSED = {"external", "vnifilter", "gbp", "gpe", "netns", "link"}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the plugin."""
    build = tmp_path_factory.mktemp("plugin")
    subprocess.run(
        ["make", "-s", "-C", str(ROOT / "iproute_ext"), "plugin", f"BUILD={build}"],
        check=True,
        capture_output=True,
    )
    return build


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab() as lab:
        yield lab.host()


@pytest.fixture
def ip(plugin: Path, host: Host) -> Any:
    """Runs `ip -n HOST …`; words in quotes stay whole. Returns exit status, output, errors."""
    command = Path(sys.executable).parent / "xmasq"
    env = os.environ | {"IP_LIB_DIR": str(plugin), "XMASQ": str(command)}

    def run(line: str | list[str], stdin: str | None = None) -> tuple[int, str, str]:
        words = line.split() if isinstance(line, str) else line
        done = subprocess.run(
            ["ip", "-n", host.name, *words], env=env, input=stdin, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_words_before_and_behind_the_type(ip, host):
    before = ["mtu", "1400", "alias", "to rack 7", "txqueuelen", "7", "arp", "off", "up", "group", "5"]
    more = ["address", "02:00:00:00:00:07", "index", "99", "numtxqueues", "2", "addrgenmode", "none"]
    words = "type xmasq id 42 local 192.0.2.1 dev eth0 ttl 9 lease 5 nolearning mark 11 bounce 15"
    assert ip(["link", "add", "xm0", *before, *more, *words.split()]) == (0, "", "")
    (link,) = xmasq_json(host, "link", "show")
    assert (link["ifname"], link["ifindex"], link["mtu"], link["txqlen"]) == ("xm0", 99, 1400, 7)
    assert (link["ifalias"], link["address"]) == ("to rack 7", "02:00:00:00:00:07")
    assert {"UP", "NOARP"} <= set(link["flags"])
    data = link["linkinfo"]["info_data"]
    assert (data["id"], data["ttl"], data["lease"], data["learning"]) == (42, 9, 5, False)
    (device,) = host.ip_json("-d link show xm0")
    assert (device["num_tx_queues"], device["group"], device["inet6_addr_gen_mode"]) == (2, "5", "none")


def test_set(ip, host):
    assert ip("link add name xm0 type xmasq id 42 local 192.0.2.1") == (0, "", "")
    host.ip("link add br0 type bridge")
    words = "link set dev xm0 name xm1 master br0 promisc on mtu 1300 type xmasq fastpath off lease 3 ttl 7"
    assert ip(words) == (0, "", "")
    (link,) = xmasq_json(host, "link", "show")
    data = link["linkinfo"]["info_data"]
    assert (link["ifname"], link["mtu"], link["master"]) == ("xm1", 1300, "br0")
    assert (data["fastpath"], data["lease"], data["ttl"]) == (False, 3, 7)
    assert ip("link change xm1 nomaster up type xmasq fastpath on") == (0, "", "")
    (link,) = xmasq_json(host, "link", "show", "up")
    assert "master" not in link
    assert ip("link set xm1 down") == (0, "", "")


def test_help(ip):
    status, out, err = ip("link help xmasq")
    assert (status, err) == (0, "")
    assert out.startswith("Usage: ... xmasq id VNI local ADDR")
    type_words = linkwords.ADD[linkwords.ADD.index(linkwords.TYPE) + 1 :]
    device = {word.name for word in type_words if word.dest.startswith(linkwords.DEVICE)} | REFUSED
    for word in type_words:
        name = word.name.removeprefix("no")
        if name not in device and word.dest != "device.master":
            assert name in out, name
    status, out, err = ip("link add xm0 type xmasq help")
    assert (status, out) == (1, "")
    assert err.startswith("Usage: ... xmasq id VNI local ADDR")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("link add xm0 type xmasq id 16777216 local 192.0.2.1", "id: 16777216 is out of range"),
        ("link add xm0 type xmasq id 1 local 192.0.2.77", "local: 192.0.2.77 is not an address of this host"),
        ("link add xm0 mtu 1501 type xmasq id 1 local 192.0.2.1", "mtu: 1501 is out of range"),
        ("link add xm0 netns 1 type xmasq id 1 local 192.0.2.1", "netns: a link works in the namespace"),
        ("link add link eth0 name xm0 type xmasq id 1 local 192.0.2.1", "link: an xmasq link names its"),
        ("link add xm0 mode dormant type xmasq id 1 local 192.0.2.1", 'a word before "type"'),
        ("link add type xmasq id 1 local 192.0.2.1", "name: missing"),
        ("link set eth0 type xmasq lease 5", 'name: "eth0" is not an xmasq link'),
    ],
)
def test_errors_leave_nothing_behind(ip, host, words, line):
    before = host.ip_json("link show")
    status, out, err = ip(words)
    assert (status in (1, 2), out) == (True, "")
    assert err.startswith(f"xmasq: {line}")
    assert err.count("\n") == 1
    assert host.ip_json("link show") == before


def test_without_options_the_kernel_answers(ip):
    status, _, err = ip("link add xm0 type xmasq")
    assert status == 2
    assert "Unknown device type" in err


def test_batch(ip, host):
    """A command of a batch does not take its place: the next lines are carried out."""
    lines = """\
link add xm0 type xmasq id 42 local 192.0.2.1
link set xm0 up
link set xm0 type xmasq lease 2
link add xm1 type xmasq id 43 local 192.0.2.77
link add xm2 mtu 1300 type xmasq id 44 local 192.0.2.1
"""
    status, _, err = ip("-force -batch -", lines)
    assert status == 1
    assert err.splitlines() == [
        "xmasq: local: 192.0.2.77 is not an address of this host",
        "Command failed -:4",
    ]
    links = {link["ifname"]: link for link in xmasq_json(host, "link", "show")}
    assert links.keys() == {"xm0", "xm2"}
    assert links["xm0"]["linkinfo"]["info_data"]["lease"] == 2
    assert "UP" in links["xm0"]["flags"]
    assert ip("-batch -", "link del xm0\nlink del xm2\n")[0] == 0
    assert xmasq_json(host, "link", "show") == []


def test_replace_is_refused(ip):
    assert ip("link replace xm0 type xmasq id 42 local 192.0.2.1")[2].startswith("xmasq: replace: ")


def test_deleted_by_its_type(ip, host):
    assert ip("link add xm0 type xmasq id 42 local 192.0.2.1")[0] == 0
    assert ip("link del xm0 type xmasq") == (0, "", "")
    assert xmasq_json(host, "link", "show") == []


def test_command_that_is_not_there(plugin, host):
    env = os.environ | {"IP_LIB_DIR": str(plugin), "XMASQ": "/nonexistent/xmasq"}
    words = ["link", "add", "xm0", "type", "xmasq", "id", "42", "local", "192.0.2.1"]
    done = subprocess.run(["ip", "-n", host.name, *words], env=env, capture_output=True, text=True)
    assert done.returncode == 127
    assert done.stderr == "xmasq: cannot run /nonexistent/xmasq: No such file or directory\n"
    assert all(link["ifname"] != "xm0" for link in json.loads(host.run("ip -j link show").stdout))
