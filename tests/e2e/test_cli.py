# SPDX-License-Identifier: Apache-2.0
"""The command, run as users run it: what it makes, what it refuses, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmod_ebpf import bpf
from kmod_ebpf.maps import COUNTERS
from tests.lab import Host, Lab, patience, routed_overlay, xmasq, xmasq_json
from xmasq_link._hooks import has_tcx

from .observe import make_hookable, programs

pytestmark = pytest.mark.e2e

XMASQ = [sys.executable, "-m", "xmasq_link"]
ADD = ["link", "add", "xm0", "id", "42", "local", "192.0.2.1"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def shared(lab: Lab) -> Host:
    """A host for tests that leave it as it was."""
    host = lab.host()
    host.ip("link add taken type bridge", "link add plain0 type vxlan id 77 local 192.0.2.1 dstport 4789")
    return host


@pytest.fixture
def host() -> Iterator[Host]:
    """A host of one test's own; its address is 192.0.2.1."""
    with Lab() as lab:
        yield lab.host()


def tc(host: Host, args: str) -> Any:
    return json.loads(host.run(f"tc -j {args}").stdout or "[]")


def hooks(host: Host, dev: str) -> dict[str, int]:
    """Our programs on a device, by name, with their ids."""
    return {name: prog for name, prog in programs(host, dev).items() if name.startswith("xmasq_")}


def state(host: Host) -> dict[str, Any]:
    """All that a command could leave behind in a namespace: devices, qdiscs, filters, programs, maps."""
    links = [
        (link["ifindex"], link["ifname"], link["mtu"], sorted(link["flags"]), link.get("linkinfo"))
        for link in host.ip_json("link show")
    ]
    devices = [name for _, name, *_ in links]
    filters = {
        (dev, side): tc(host, f"filter show dev {dev} {side}")
        for dev in devices
        for side in ("ingress", "egress")
    }
    found = sorted({prog for dev in devices for prog in programs(host, dev).values()})
    maps: set[int] = set()
    for prog in found:
        fd = bpf.prog_fd(prog)
        maps.update(bpf.prog_info(fd).map_ids)
        os.close(fd)
    return {
        "links": links,
        "qdiscs": tc(host, "qdisc show"),
        "filters": filters,
        "programs": found,
        "maps": maps,
    }


def after_deletion(host: Host) -> dict[str, Any]:
    """The same when links were deleted: where there is no tcx, an empty clsact qdisc is left behind.

    To take it away would stop the device for a moment, as it did to add it.
    """
    now = state(host)
    if not has_tcx():
        now["qdiscs"] = [qdisc for qdisc in now["qdiscs"] if qdisc["kind"] != "clsact"]
    return now


def one_line(result: Any, code: int) -> str:
    """Asserts how a command that failed ended; returns its line."""
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith("xmasq: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("\n")
    return str(result.stderr[len("xmasq: ") : -1])


# What is refused

BAD = {
    "no name": ("link add id 7 local 192.0.2.1", "name"),
    "name too long": ("link add xmasq-is-too-long id 7 local 192.0.2.1", "name"),
    "name with slash": ("link add xm/0 id 7 local 192.0.2.1", "name"),
    "name is a dot": ("link add . id 7 local 192.0.2.1", "name"),
    "name with a space": ("link add 'x m' id 7 local 192.0.2.1", "name"),
    "name with a line break": ("link add 'x\nm' id 7 local 192.0.2.1", "name"),
    "name is empty": ("link add '' id 7 local 192.0.2.1", "name"),
    "name is no text": ("link add \udcff id 7 local 192.0.2.1", "\\udcff"),
    "name taken by a bridge": ("link add taken id 7 local 192.0.2.1", "name"),
    "name taken by a link": ("link add xm0 id 7 local 192.0.2.1", "name"),
    "no id": ("link add xm1 local 192.0.2.1", "id"),
    "id too big": ("link add xm1 id 16777216 local 192.0.2.1", "id"),
    "id below 0": ("link add xm1 id -1 local 192.0.2.1", "id"),
    "id no number": ("link add xm1 id seven local 192.0.2.1", "id"),
    "id far too big": (f"link add xm1 id {'9' * 5000} local 192.0.2.1", "id"),
    "id in use by a link": ("link add xm1 id 42 local 192.0.2.1", "id"),
    "id in use by a vxlan device": ("link add xm1 id 77 local 192.0.2.1", "id"),
    "no local": ("link add xm1 id 7", "local"),
    "local not here": ("link add xm1 id 7 local 192.0.2.99", "local"),
    "local no address": ("link add xm1 id 7 local 192.0.2", "local"),
    "local IPv6": ("link add xm1 id 7 local 2001:db8::1", "local"),
    "local multicast": ("link add xm1 id 7 local 239.1.1.1", "local"),
    "local any": ("link add xm1 id 7 local 0.0.0.0", "local"),
    "remote no address": ("link add xm1 id 7 local 192.0.2.1 remote peer", "remote"),
    "remote multicast": ("link add xm1 id 7 local 192.0.2.1 remote 239.1.1.1", "remote"),
    "dev unknown": ("link add xm1 id 7 local 192.0.2.1 dev eth9", "dev"),
    "dev too long": ("link add xm1 id 7 local 192.0.2.1 dev ethernet-number-nine", "dev"),
    "dev without Ethernet": ("link add xm1 id 7 local 192.0.2.1 dev lo", "dev"),
    "mtu above the underlay's": ("link add xm1 mtu 1501 id 7 local 192.0.2.1", "mtu"),
    "mtu too small": ("link add xm1 mtu 67 id 7 local 192.0.2.1", "mtu"),
    "mtu no number": ("link add xm1 mtu big id 7 local 192.0.2.1", "mtu"),
    "address multicast": ("link add xm1 address 01:00:5e:00:00:01 id 7 local 192.0.2.1", "address"),
    "address too short": ("link add xm1 address 02:00:00:00:00 id 7 local 192.0.2.1", "address"),
    "dstport 0": ("link add xm1 id 7 local 192.0.2.1 dstport 0", "dstport"),
    "dstport too big": ("link add xm1 id 7 local 192.0.2.1 dstport 65536", "dstport"),
    "dstport not the others'": ("link add xm1 id 7 local 192.0.2.1 dstport 4790", "dstport"),
    "type vxlan": ("link add xm1 type vxlan id 7 local 192.0.2.1", "type"),
    "ttl 0": ("link add xm1 id 7 local 192.0.2.1 ttl 0", "ttl"),
    "ttl 256": ("link add xm1 id 7 local 192.0.2.1 ttl 256", "ttl"),
    "tos too big": ("link add xm1 id 7 local 192.0.2.1 tos 100", "tos"),
    "ageing no number": ("link add xm1 id 7 local 192.0.2.1 ageing never", "ageing"),
    "maxaddress below 0": ("link add xm1 id 7 local 192.0.2.1 maxaddress -1", "maxaddress"),
    "lease too short": ("link add xm1 id 7 local 192.0.2.1 lease 999ms", "lease"),
    "lease too long": ("link add xm1 id 7 local 192.0.2.1 lease 61", "lease"),
    "lease no time": ("link add xm1 id 7 local 192.0.2.1 lease 1m", "lease"),
    "secret-file missing": ("link add xm1 id 7 local 192.0.2.1 secret-file /nonexistent", "secret-file"),
    "secret-file is a directory": ("link add xm1 id 7 local 192.0.2.1 secret-file /proc", "secret-file"),
    "secret-file is a device": ("link add xm1 id 7 local 192.0.2.1 secret-file /dev/zero", "secret-file"),
    "secret-file readable by all": (
        "link add xm1 id 7 local 192.0.2.1 secret-file /etc/passwd",
        "secret-file",
    ),
    "segment-bits 3": ("link add xm1 id 7 local 192.0.2.1 segment-bits 3", "segment-bits"),
    "segment-bits not the others'": ("link add xm1 id 7 local 192.0.2.1 segment-bits 5", "segment-bits"),
    "key-bits 4": ("link add xm1 id 7 local 192.0.2.1 key-bits 4", "key-bits"),
    "key-bits not the others'": ("link add xm1 id 7 local 192.0.2.1 key-bits 1", "key-bits"),
    "unknown keyword": ("link add xm1 id 7 local 192.0.2.1 colour blue", "colour"),
    "value missing": ("link add xm1 id 7 local", "local"),
    "duplicate": ("link add xm1 id 7 local 192.0.2.1 id 8", "id"),
    "duplicate by another spelling": ("link add xm1 id 7 local 192.0.2.1 vni 7", "id"),
    "contradiction": ("link add xm1 id 7 local 192.0.2.1 learning nolearning", "nolearning"),
    "unknown command": ("link rename xm0 xm1", "rename"),
    "unknown object": ("tunnel show", "tunnel"),
    "no object": ("", "OBJECT"),
    "unknown option": ("-x link show", "-x"),
    "show unknown": ("link show nosuch", "name"),
    "show a bridge": ("link show taken", "name"),
    "delete unknown": ("link del nosuch", "name"),
    "delete a bridge": ("link del taken", "name"),
    "delete a vxlan device": ("link del plain0", "name"),
    "delete nothing": ("link del", "name"),
    "set unknown": ("link set nosuch lease 5", "name"),
    "set nothing": ("link set xm0", "link set"),
    "set mtu above the underlay's": ("link set xm0 fastpath off mtu 1501", "mtu"),
    "set lease too long": ("link set xm0 fastpath off lease 2h", "lease"),
    "set fastpath": ("link set xm0 fastpath maybe", "fastpath"),
    "set local": ("link set xm0 local 192.0.2.1", "local"),
    "flows of an unknown link": ("flow show link nosuch", "name"),
    "keys of a bridge": ("key show link taken", "name"),
    "peers of something": ("peer show all", "all"),
    "flush an unknown link": ("flush link nosuch", "name"),
    "flush a peer that is no address": ("flush peer host", "peer"),
    "flush a source that is no address": ("flush source 300.1.1.1", "source"),
}


@pytest.fixture(scope="module")
def busy(shared: Host) -> Host:
    """The shared host with a link in use."""
    xmasq(shared, "link", "add", "xm0", "id", "42", "local", shared.address)
    return shared


@pytest.mark.parametrize("case", BAD)
def test_bad_input_leaves_no_trace(busy, case):
    text, argument = BAD[case]
    words = text.replace("192.0.2.1 ", f"{busy.address} ").replace("192.0.2.1", busy.address)
    words = [word.strip("'") for word in _split(words)]
    before = state(busy)
    line = one_line(xmasq(busy, *words, check=False), 2)
    assert line.startswith(f"{argument}: ")
    assert state(busy) == before
    (link,) = xmasq_json(busy, "link", "show")
    assert link["linkinfo"]["info_data"]["fastpath"] is True


def _split(text: str) -> list[str]:
    """Words; quoted ones stay whole."""
    words, quoted = [], False
    for part in text.split("'"):
        words += [part] if quoted else part.split()
        quoted = not quoted
    return words


@pytest.mark.parametrize("words", [["link"], ADD])
def test_unknown_namespace(words):
    line = one_line(xmasq(None, "-n", "xmq-no-such-namespace", *words, check=False), 2)
    assert line.startswith("netns: ")


#: The modules are imported while still root: the tree may be closed to others.
AS_NOBODY = """
import os, sys
from xmasq_link._cli import flow, flush, key, link, peer
import xmasq_link._flow, xmasq_link._link
from xmasq_link._cli.main import main
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "words",
    [
        "link add xm1 id 7 local 192.0.2.1",
        "link del xm0",
        "link set xm0 fastpath off",
        "flush",
        "link show",
        "flow",
        "key",
        "peer",
    ],
)
def test_not_root(busy, words):
    before = state(busy)
    result = busy.run([sys.executable, "-c", AS_NOBODY, *words.split()], check=False)
    assert one_line(result, 2).startswith("not root: only root can ")
    assert state(busy) == before


def test_secret_file_of_someone_else(busy, tmp_path):
    path = tmp_path / "secret"
    path.write_text("0123456789abcdef")
    path.chmod(0o600)
    os.chown(path, 65534, 65534)
    words = ["link", "add", "xm1", "id", "7", "local", busy.address, "secret-file", str(path)]
    assert one_line(xmasq(busy, *words, check=False), 2).startswith("secret-file: ")


# What is made


def test_link_is_shown_as_made(host):
    words = "mtu 1400 address 02:00:00:00:00:07 up type xmasq vni 0xffffff local 192.0.2.1 dev eth0"
    more = "remote 192.0.2.9 dstport 8472 nolearning ttl 64 ageing 77 maxaddress 99 noudpcsum lease 2500ms"
    xmasq(host, "link", "add", "name", "xm0", *words.split(), *more.split())
    (link,) = xmasq_json(host, "link", "show", "xm0")
    (vxlan,) = host.ip_json("link show xm0")
    same = ("ifindex", "ifname", "mtu", "operstate", "link_type", "address", "broadcast", "txqlen")
    assert {name: link[name] for name in same} == {name: vxlan[name] for name in same}
    assert sorted(link["flags"]) == sorted(vxlan["flags"])
    assert link["linkinfo"]["info_kind"] == "xmasq"
    data = link["linkinfo"]["info_data"]
    assert data["id"] == 16777215
    assert data["local"] == "192.0.2.1"
    assert data["remote"] == "192.0.2.9"
    assert data["port"] == 8472
    assert data["dev"] == "eth0"
    assert data["learning"] is False
    assert data["lease"] == 2.5
    made = vxlan["linkinfo"]["info_data"]
    assert (made["id"], made["local"], made["remote"], made["port"]) == (
        16777215,
        "192.0.2.1",
        "192.0.2.9",
        8472,
    )
    assert (made["learning"], made["ttl"], made["ageing"], made["limit"]) == (False, 64, 77, 99)
    assert made["udp_csum"] is False
    assert link["address"] == "02:00:00:00:00:07"
    lines = xmasq(host, "-d", "link", "show", "xm0").stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"{link['ifindex']}: xm0: <")
    assert " mtu 1400 " in lines[0]
    assert lines[1].startswith("    link/ether 02:00:00:00:00:07 brd ff:ff:ff:ff:ff:ff")
    start = (
        "    xmasq id 16777215 remote 192.0.2.9 local 192.0.2.1 dev eth0 dstport 8472 nolearning lease 2.5s"
    )
    assert lines[2].startswith(start)


def test_defaults(host):
    xmasq(host, *ADD)
    (link,) = xmasq_json(host, "link")
    data = link["linkinfo"]["info_data"]
    assert (link["mtu"], data["dev"], data["port"], data["learning"]) == (1500, "eth0", 4789, True)
    assert (data["lease"], data["fastpath"], data["secret"]) == (10, True, False)
    assert "UP" not in link["flags"]
    assert "xmasq" not in link


def test_json_has_the_counters(lab):
    hosts = lab.hosts(2)
    overlay = routed_overlay(hosts, "xmasq", vni=99)
    a, b = overlay.containers
    assert a.ping(b, count=20).lost == 0
    (link,) = xmasq_json(hosts[0], "-s", "link", "show", "xm0")
    stats = link["xmasq"]
    assert {*COUNTERS, "encoded", "decoded", "fallback", "bounced"} <= stats.keys()
    assert stats["encoded"] >= 15
    assert stats["decoded"] >= 15
    assert stats["fallback"] >= 1
    assert stats["bounced"] == 0
    text = xmasq(hosts[0], "-s", "link", "show", "xm0").stdout
    assert f"encoded      {stats['encoded']} packets, {stats['encoded_bytes']} bytes" in text
    assert f"decoded      {stats['decoded']} packets, {stats['decoded_bytes']} bytes" in text

    (flow,) = (f for f in xmasq_json(hosts[0], "flow", "show") if f["vni"] == 99)
    assert (flow["link"], flow["source"], flow["destination"]) == ("xm0", a.address, b.address)
    assert (flow["peer"], flow["local"], flow["dev"]) == (hosts[1].address, hosts[0].address, "eth0")
    assert 0 < flow["lease_left_ms"] <= 10_000
    (key,) = xmasq_json(hosts[1], "key", "show", "link", "xm0")
    same = ("source", "destination", "source_mac", "destination_mac", "key", "vni", "dscp", "df")
    assert {name: key[name] for name in same} == {name: flow[name] for name in same}
    assert (key["state"], key["peer"]) == ("granted", hosts[0].address)
    (peer,) = xmasq_json(hosts[0], "peer", "show")
    assert (peer["peer"], peer["flows"], peer["verdict"]) == (hosts[1].address, 1, "ok")
    for words, columns in (("flow", flow), ("key", key)):
        (line,) = xmasq(hosts[0] if words == "flow" else hosts[1], words, "show").stdout.splitlines()
        assert line.split()[:3] == [columns["source"], ">", columns["destination"]]
        assert f" key {columns['key']} " in line

    assert xmasq_json(hosts[0], "flush", "source", "192.0.2.77") == [{"ended": 0}]
    assert xmasq_json(hosts[0], "flush", "link", "xm0", "peer", hosts[1].address)[0]["ended"] >= 1
    assert xmasq_json(hosts[0], "flow", "show") == []
    assert a.ping(b, count=5).lost == 0
    assert len(xmasq_json(hosts[0], "flow", "show")) == 1


def test_show_without_a_link(host):
    for words in ("link show", "flow show", "key show", "peer show"):
        assert xmasq(host, *words.split()).stdout == ""
        assert xmasq_json(host, *words.split()) == []
        assert xmasq(host, "-j", "-p", *words.split()).stdout == "[]\n"


def test_pretty_json_is_the_same(host):
    xmasq(host, *ADD)
    plain = xmasq(host, "-j", "link").stdout
    pretty = xmasq(host, "-j", "-p", "link").stdout
    assert plain.count("\n") == 1
    assert pretty.count("\n") > 10
    assert json.loads(plain) == json.loads(pretty)


def test_set(host):
    xmasq(host, *ADD, "lease", "10")
    xmasq(host, "link", "set", "dev", "xm0", "up", "mtu", "1300", "fastpath", "off", "lease", "1.5")
    (link,) = xmasq_json(host, "link", "show", "up")
    assert (link["mtu"], link["linkinfo"]["info_data"]["fastpath"]) == (1300, False)
    assert link["linkinfo"]["info_data"]["lease"] == 1.5
    xmasq(host, "link", "set", "xm0", "down", "fastpath", "on")
    assert xmasq_json(host, "link", "show", "up") == []
    (link,) = xmasq_json(host, "link", "show")
    assert (link["mtu"], link["linkinfo"]["info_data"]["fastpath"]) == (1300, True)


def test_secret_never_appears(host, tmp_path):
    path = tmp_path / "secret"
    path.write_text("correct horse battery staple\n")
    path.chmod(0o600)
    xmasq(host, *ADD, "secret-file", str(path))
    xmasq(host, "link", "set", "xm0", "secret-file", str(path))
    for words in (["link"], ["-d", "-s", "link"], ["-j", "-s", "link"]):
        said = xmasq(host, *words).stdout
        assert "secret" in said
        assert "horse" not in said
        assert str(path) not in said
    (link,) = xmasq_json(host, "link")
    assert link["linkinfo"]["info_data"]["secret"] is True


def test_ip_netns_exec(host):
    """`ip netns exec` mounts another /sys; the process that looks is not the one that made the link."""
    inside = ["ip", "netns", "exec", host.name, *XMASQ]
    for words in (ADD, ["flow"], ["key"], ["peer"], ["flush"]):
        host.lab.start([*inside, *words]).wait(patience(10))
    done = host.lab.start([*inside, "-j", "-s", "link", "show", "xm0"])
    out, err = done.communicate(timeout=patience(10))
    assert err == ""
    assert out == xmasq(host, "-j", "-s", "link", "show", "xm0").stdout
    assert json.loads(out)[0]["ifname"] == "xm0"
    assert host.lab.start([*inside, "link", "del", "xm0"]).wait(patience(10)) == 0
    assert xmasq_json(host, "link") == []


# What goes away


def test_delete_removes_all(host):
    before = state(host)
    xmasq(host, *ADD, "up")
    assert hooks(host, "xm0").keys() == {"xmasq_encode", "xmasq_arrive"}
    assert hooks(host, "eth0").keys() == {"xmasq_ingress", "xmasq_egress"}
    during = state(host)
    if has_tcx():  # to add a qdisc would stop the device
        assert {qdisc["kind"] for qdisc in during["qdiscs"]} == {qdisc["kind"] for qdisc in before["qdiscs"]}
    xmasq(host, "link", "del", "xm0")
    assert after_deletion(host) == before
    # Programs and maps end when the kernel has seen their last user off, a moment later.
    end = time.monotonic() + patience(5)
    while (left := _alive(during)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not left


def _alive(of: dict[str, Any]) -> list[str]:
    left = []
    for kind, ids, open_ in (("prog", of["programs"], bpf.prog_fd), ("map", of["maps"], bpf.map_fd)):
        for one in ids:
            with contextlib.suppress(FileNotFoundError):
                os.close(open_(one))
                left.append(f"{kind} {one}")
    return left


def test_second_link_uses_the_same_programs(host):
    xmasq(host, *ADD)
    first, underlay = hooks(host, "xm0"), hooks(host, "eth0")
    xmasq(host, "link", "add", "xm1", "id", "43", "local", "192.0.2.1")
    assert hooks(host, "xm1") == first
    assert hooks(host, "eth0") == underlay
    xmasq(host, "link", "del", "xm0")
    assert hooks(host, "eth0") == underlay
    assert [link["ifname"] for link in xmasq_json(host, "link")] == ["xm1"]
    xmasq(host, "link", "del", "xm1")
    assert hooks(host, "eth0") == {}


def test_what_is_not_ours_stays(host):
    host.run("tc qdisc add dev eth0 clsact")
    words = "filter add dev eth0 ingress prio 7 bpf direct-action bytecode"
    host.run(["tc", *words.split(), "1,6 0 0 0"])
    before = state(host)
    xmasq(host, *ADD)
    xmasq(host, "link", "del", "xm0")
    assert state(host) == before


def test_device_deleted_by_others(host):
    make_hookable(host, "eth0")  # without tcx, an empty clsact qdisc would be left behind
    before = state(host)
    xmasq(host, *ADD)
    programs = state(host)["programs"]
    host.ip("link del xm0")
    assert xmasq_json(host, "link", "show") == []
    assert one_line(xmasq(host, "link", "del", "xm0", check=False), 2).startswith("name: ")
    xmasq(host, *ADD)
    assert state(host)["programs"] != programs
    assert len(xmasq_json(host, "link", "show")) == 1
    xmasq(host, "link", "del", "xm0")
    assert state(host) == before


def test_several_at_the_same_time(host):
    """They wait for each other: one datapath, and none takes it from the others."""
    make_hookable(host, "eth0")  # without tcx, an empty clsact qdisc would be left behind
    before = state(host)
    numbers = range(4)
    adds = [
        host.popen([*XMASQ, "link", "add", f"xm{n}", "id", f"{n}", "local", host.address]) for n in numbers
    ]
    for process in adds:
        assert process.communicate(timeout=patience(30)) == ("", "")
        assert process.returncode == 0
    assert len({tuple(hooks(host, f"xm{n}").items()) for n in numbers}) == 1
    assert sorted(link["ifname"] for link in xmasq_json(host, "link")) == [f"xm{n}" for n in numbers]
    same = [host.popen([*XMASQ, "link", "add", "same", "id", "9", "local", host.address]) for _ in range(2)]
    assert sorted(process.wait(patience(30)) for process in same) == [0, 2]
    removes = [host.popen([*XMASQ, "link", "del", name]) for name in ("same", "xm0", "xm1", "xm2", "xm3")]
    assert [process.wait(patience(30)) for process in removes] == [0] * 5
    assert state(host) == before


# Interruption

#: Runs commands in forks of itself, and sends SIGTERM at the n-th step of a command: before a line of
#: our own code, or of the code in which pyroute2 sends requests and waits for answers.
DRIVER = """
import os, signal, sys
__name__ = "xmasq_link.driver"  # for its frames to count as the command's own
from xmasq_link._cli import link
from xmasq_link._cli.main import main
import xmasq_link._link

OURS = ("/_link.py", "/_datapath.py", "/_hooks.py", "/_hold.py", "/_netns.py", "/nlsocket.py", "/linux.py")
OFTEN = ("__init__", "links", "stats", "<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")

def run(step, words):
    seen = 0

    def watch(frame, event, arg):
        nonlocal seen
        if event == "line":
            seen += 1
            if seen == step:
                signal.raise_signal(signal.SIGTERM)
        elif not frame.f_code.co_filename.endswith(OURS) or frame.f_code.co_name in OFTEN:
            return None
        return watch

    sys.settrace(watch)
    status = main(words)
    sys.settrace(None)
    return status, seen

for line in sys.stdin:
    step, *words = line.split()
    r, w = os.pipe()
    if not (pid := os.fork()):
        try:
            os.write(w, "{} {}".format(*run(int(step), words)).encode())
        finally:
            os._exit(0)
    os.close(w)
    os.waitpid(pid, 0)
    print(os.read(r, 64).decode(), flush=True)
    os.close(r)
"""


class Driver:
    """Runs commands in a host, interrupted at a chosen step."""

    def __init__(self, host: Host) -> None:
        self.process = host.popen([sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stderr=None)

    def run(self, step: int, *words: str) -> tuple[int, int]:
        """Exit status and steps taken. step 0: not interrupted."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{step} {' '.join(words)}\n")
        self.process.stdin.flush()
        status, seen = self.process.stdout.readline().split()
        return int(status), int(seen)


def some_steps(steps: int, count: int) -> range:
    """Evenly spread, and others with each run."""
    stride = steps // count
    return range(1 + random.randrange(stride), steps + 1, stride)


def undone(host: Host, before: dict[str, Any]) -> bool:
    """Whether all is as before. If not, asserts that the link is whole: the signal came too late."""
    if state(host) == before:
        return True
    assert hooks(host, "xm0").keys() == {"xmasq_encode", "xmasq_arrive"}
    assert hooks(host, "eth0").keys() == {"xmasq_ingress", "xmasq_egress"}
    return False


@pytest.mark.slow
def test_creation_interrupted_at_many_steps(host):
    driver = Driver(host)
    make_hookable(host, "eth0")  # without tcx, an empty clsact qdisc would be left behind
    before = state(host)
    status, steps = driver.run(0, *ADD, "up")
    assert status == 0
    assert driver.run(0, "link", "del", "xm0")[0] == 0
    assert state(host) == before
    rolled_back = 0
    for step in some_steps(steps, 40):
        status, _ = driver.run(step, *ADD, "up")
        if status == 0:  # nothing of the command was left to be interrupted
            assert driver.run(0, "link", "del", "xm0")[0] == 0
            continue
        assert status == 128 + signal.SIGTERM
        if undone(host, before):
            rolled_back += 1
        else:
            assert "UP" in xmasq_json(host, "link", "show", "xm0")[0]["flags"], step
            xmasq(host, "link", "del", "xm0")
            assert state(host) == before
    assert rolled_back > 20


def test_deletion_is_not_left_half_way(host):
    driver = Driver(host)
    make_hookable(host, "eth0")  # without tcx, an empty clsact qdisc would be left behind
    before = state(host)
    assert driver.run(0, *ADD)[0] == 0
    _, steps = driver.run(0, "link", "del", "xm0")
    for step in some_steps(steps, 12):
        assert driver.run(0, *ADD)[0] == 0
        status, _ = driver.run(step, "link", "del", "xm0")
        assert status == 128 + signal.SIGTERM
        assert state(host) == before


@pytest.mark.parametrize("cache", ["empty", "full"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_at_any_time(host, cache, signum):
    """Real signals at points in time, with an empty cache most of them while the compiler runs."""
    xmasq(host, *ADD)
    xmasq(host, "link", "del", "xm0")
    before = state(host)
    # A tmpfs over the cache, seen by this process only.
    hide = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /var/cache && exec "$@"', "sh"]
    words = [*(hide if cache == "empty" else []), *XMASQ, *ADD]
    status, whole = _run(host, words, None, signum)
    assert status == 0
    xmasq(host, "link", "del", "xm0")
    statuses = []
    points = [0.02, 0.2, 0.4] if cache == "empty" else []
    for point in [*points, *(whole * random.uniform(0, 0.9) for _ in range(5))]:
        status, took = _run(host, words, point, signum)
        assert status in (0, 128 + signum), point
        assert took < point + patience(10)
        statuses.append(status)
        if status == 0 or not undone(host, before):
            xmasq(host, "link", "del", "xm0")
            assert state(host) == before
    assert 128 + signum in statuses


def _run(host: Host, words: list[str], signal_after: float | None, signum: int) -> tuple[int, float]:
    """Exit status, and seconds it took from where it is ready for signals.

    Asserts that no process stays behind, and nothing was said.
    """
    process = host.popen(words)
    while not _catches(process.pid, signal.SIGHUP):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    start = time.monotonic()
    if signal_after is not None:
        time.sleep(signal_after)
        process.send_signal(signum)
    out, err = process.communicate(timeout=patience(30))
    took = time.monotonic() - start
    assert (out, err) == ("", "")
    end = time.monotonic() + patience(5)
    while (left := _session(process.pid)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not left
    return process.returncode, took


def _catches(pid: int, signum: int) -> bool:
    """Whether a process has a handler for a signal (proc(5), SigCgt)."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (signum - 1) & 1)


def _session(leader: int) -> list[str]:
    """Processes that belong to a session, but for zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal():
                state_, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state_ != "Z":
                    found.append((entry / "cmdline").read_text())
    return found


def test_output_that_nobody_reads(busy):
    done = busy.run(["bash", "-c", f"set -o pipefail; {' '.join(XMASQ)} -s link show | true"], check=False)
    assert done.stderr == ""
    done = busy.run(["bash", "-c", f"{' '.join(XMASQ)} link show >/dev/full"], check=False)
    assert one_line(done, 1) == "No space left on device"
