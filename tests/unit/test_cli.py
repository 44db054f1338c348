# SPDX-License-Identifier: Apache-2.0
"""The command line by itself: words in, API calls and text out. Nothing here touches the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import xmasq_link as api
from kmod_ebpf.maps import COUNTERS
from xmasq_link import Flow, InputError, Key, Link, Peer, Statistics, Traffic, XmasqError
from xmasq_link._cli import counters, flow, flush, key, link, main, peer, words
from xmasq_link._cli.interrupt import Interrupted, Signals
from xmasq_link._cli.output import Options, show
from xmasq_link._cli.secret import read_secret

ROOT = Path(__file__).resolve().parents[2]
INFO = {
    "ifindex": 4,
    "ifname": "xm0",
    "flags": ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"],
    "mtu": 1500,
    "qdisc": "noqueue",
    "operstate": "UNKNOWN",
    "linkmode": "DEFAULT",
    "group": "default",
    "txqlen": 1000,
    "link_type": "ether",
    "address": "02:00:00:00:00:01",
    "broadcast": "ff:ff:ff:ff:ff:ff",
    "linkinfo": {
        "info_kind": "xmasq",
        "info_data": {
            "id": 42,
            "local": "192.0.2.1",
            "dev": "eth0",
            "port": 4789,
            "learning": True,
            "ttl": 0,
            "udp_csum": True,
        },
    },
}
LINK = Link(
    name="xm0",
    index=4,
    vni=42,
    local="192.0.2.1",
    dev="eth0",
    remote=None,
    port=4789,
    mtu=1500,
    address="02:00:00:00:00:01",
    learning=True,
    lease_ms=10_000,
    fastpath=True,
    secret=False,
    up=True,
    info=INFO,
    stats=dict.fromkeys(COUNTERS, 0) | {"fallback": 0, "bounced": 0},
)
SAME = {
    "link": "xm0",
    "vni": 42,
    "source_mac": "02:00:00:00:00:01",
    "destination_mac": "02:00:00:00:00:02",
    "source": "198.51.100.2",
    "destination": "198.51.100.18",
    "dscp": 8,
    "df": True,
    "peer": "192.0.2.2",
    "local": "192.0.2.1",
    "key": 7,
    "lease_left_ms": 4321,
}
FLOW = Flow(**SAME, dev="eth0", nexthop="192.0.2.254")
KEY = Key(**SAME, used=True, state="granted")
PEER = Peer("192.0.2.2", "192.0.2.1", 1200, 3, 4, "ok", 0)


class Calls(list):
    """Stands for the API: remembers what it was asked for."""

    def fake(self, name, result):
        def call(*args, **kwargs):
            self.append((name, args, kwargs))
            return result() if callable(result) else result

        return call


@pytest.fixture
def calls(monkeypatch):
    calls = Calls()
    results = {
        "create_link": LINK,
        "delete_link": None,
        "set_link": None,
        "prune_links": 2,
        "iter_links": lambda: iter([LINK]),
        "flows": lambda: iter([FLOW]),
        "keys": lambda: iter([KEY]),
        "peers": lambda: [PEER],
        "flush": 5,
    }
    for name, result in results.items():
        monkeypatch.setattr(api, name, calls.fake(name, result))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return calls


@pytest.fixture
def run(capsys, calls):
    """Runs a command; returns exit status, standard output and standard error."""

    def run(line):
        status = main.main(line.split() if isinstance(line, str) else line)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def refused(result, status, start):
    assert result[:2] == (status, "")
    assert result[2].startswith(f"xmasq: {start}")
    assert result[2].count("\n") == 1


# What a command asks of the API

ADDED = {"vni": 42, "local": "192.0.2.1"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("link add xm0 id 42 local 192.0.2.1", {}),
        ("l a xm0 vni 0x2a local 192.0.2.1 type xmasq", {}),
        ("link add name id id 42 local 192.0.2.1", {"name": "id"}),
        ("link add id 42 xm0 local 192.0.2.1", {}),
        ("link add xm0 id 42 local 192.0.2.1 mtu 1400", {"mtu": 1400}),
        ("link add xm0 id 42 local 192.0.2.1 up", {"up": True}),
        ("link add xm0 id 42 local 192.0.2.1 down", {"up": False}),
        (
            "link add xm0 id 42 local 192.0.2.1 dev eth0 remote 192.0.2.2",
            {"dev": "eth0", "remote": "192.0.2.2"},
        ),
        ("link add dev xm0 id 42 local 192.0.2.1 dev eth0", {"dev": "eth0"}),
        ("link add xm0 id 42 local 192.0.2.1 dstport 8472", {"port": 8472}),
        ("link add xm0 id 42 local 192.0.2.1 nolearning", {"learning": False}),
        ("link add xm0 id 42 local 192.0.2.1 learning", {"learning": True}),
        ("link add xm0 address 02:00:00:00:00:01 id 42 local 192.0.2.1", {"address": "02:00:00:00:00:01"}),
        ("link add xm0 id 42 local 192.0.2.1 lease 2.5s", {"lease_ms": 2500}),
        ("link add xm0 id 42 local 192.0.2.1 segment-bits 5 key-bits 2", {"seg_bits": 5, "key_bits": 2}),
        ("link add xm0 id 42 local 192.0.2.1 dstport 0", {"port": 0}),
        (
            "link add xm0 id 42 local 192.0.2.1 group 239.1.1.1 dev eth0",
            {"remote": "239.1.1.1", "dev": "eth0"},
        ),
        ("link add xm0 group 7 id 42 local 192.0.2.1", {"device": {"devgroup": "7"}}),
        (
            "link add xm0 group green id 42 local 192.0.2.1 remote 239.1.1.1",
            {"device": {"devgroup": "green"}, "remote": "239.1.1.1"},
        ),
        ("link add xm0 id 42 local 192.0.2.1 fastpath off", {"fastpath": False}),
        ("link add xm0 id 42 local 192.0.2.1 mark 11 bounce 15", {"mark": 11, "bounce": 15}),
        ("link add xm0 id 42 local 192.0.2.1 flows 2048", {"flows": 2048}),
        *(
            (f"link add xm0 id 42 local 192.0.2.1 {words}", {"vxlan": expected})
            for words, expected in (
                ("ttl 64", {"ttl": 64}),
                ("hoplimit 0x40", {"ttl": 64}),
                ("ttl auto", {"ttl": "auto"}),
                ("ttl inherit", {"ttl": "inherit"}),
                ("tos inherit", {"tos": "inherit"}),
                ("tos b8", {"tos": 0xB8}),
                ("tos 0x10", {"tos": 0x10}),
                ("dsfield AF11", {"tos": "AF11"}),
                ("df inherit", {"df": "inherit"}),
                ("flowlabel 0xfffff", {"flowlabel": 0xFFFFF}),
                ("srcport 5000 6000", {"srcport": (5000, 6000)}),
                ("port 5000 6000", {"srcport": (5000, 6000)}),
                ("ageing 0", {"ageing": 0}),
                ("ageing none", {"ageing": "none"}),
                ("maxaddress 9", {"maxaddress": 9}),
                ("maxaddress unlimited", {"maxaddress": "unlimited"}),
                ("reserved_bits 0xff", {"reserved_bits": 255}),
                ("external", {"external": True}),
                ("gbp", {"gbp": True}),
                ("gpe", {"gpe": True}),
                ("proxy noudpcsum nol2miss", {"proxy": True, "udpcsum": False, "l2miss": False}),
            )
        ),
        *(
            (f"link add xm0 {words} id 42 local 192.0.2.1", {"device": expected})
            for words, expected in (
                ("alias two", {"alias": "two"}),
                ("qlen 7 arp off", {"txqueuelen": 7, "arp": False}),
                ("master br0", {"master": "br0"}),
                ("vrf red", {"master": "red"}),
                ("nomaster", {"master": None}),
                ("index 77 numtxqueues 2", {"index": 77, "numtxqueues": 2}),
            )
        ),
    ],
)
def test_link_add(run, calls, line, expected):
    assert run(line) == (0, "", "")
    name = expected.pop("name", "xm0")
    assert calls == [("create_link", (name,), ADDED | expected)]


PHRASES = (
    ("id", "42"),
    ("local", "192.0.2.1"),
    ("mtu", "1400"),
    ("dev", "eth0"),
    ("type", "xmasq"),
    ("nolearning",),
    ("ttl", "7"),
    ("lease", "3"),
    ("xm0",),
)


@given(st.permutations(PHRASES))
def test_words_come_in_any_order(phrases):
    found = words.parse(list(itertools.chain.from_iterable(phrases)), link.ADD, "link add", bare="name")
    assert found == {
        "vni": 42,
        "local": "192.0.2.1",
        "mtu": 1400,
        "dev": "eth0",
        "type": "xmasq",
        "learning": False,
        "vxlan.ttl": 7,
        "lease_ms": 3000,
        "name": "xm0",
    }


@given(st.lists(st.one_of(st.text(max_size=6), st.sampled_from([w.name for w in link.ADD])), max_size=8))
def test_any_words_are_understood_or_refused(line):
    with contextlib.suppress(InputError, words.HelpWanted):
        found = words.parse(line, link.ADD, "link add", bare="name")
        assert len(found) <= len(line)


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("link del xm0", ("delete_link", ("xm0",), {})),
        ("link delete dev xm0 type xmasq", ("delete_link", ("xm0",), {})),
        ("l d name xm0", ("delete_link", ("xm0",), {})),
        ("link set xm0 fastpath off", ("set_link", ("xm0",), {"fastpath": False})),
        (
            "link set dev xm0 lease 1500ms fastpath on",
            ("set_link", ("xm0",), {"fastpath": True, "lease_ms": 1500}),
        ),
        ("link set xm0 name xm1 down", ("set_link", ("xm0",), {"new_name": "xm1", "up": False})),
        (
            "link change xm0 remote 192.0.2.9 nolearning ttl 9 alias x type xmasq",
            (
                "set_link",
                ("xm0",),
                {"remote": "192.0.2.9", "learning": False, "vxlan": {"ttl": 9}, "device": {"alias": "x"}},
            ),
        ),
        ("link prune", ("prune_links", (), {})),
        ("link show", ("iter_links", (None,), {})),
        ("link", ("iter_links", (None,), {})),
        ("link list xm0", ("iter_links", ("xm0",), {})),
        ("li ls dev xm0", ("iter_links", ("xm0",), {})),
        ("flow", ("flows", (None,), {})),
        ("f sh link xm0", ("flows", ("xm0",), {})),
        ("key show dev xm0", ("keys", ("xm0",), {})),
        ("peer", ("peers", (), {})),
        ("flush", ("flush", (), {})),
        ("flu link xm0 peer 192.0.2.2", ("flush", (), {"link": "xm0", "peer": "192.0.2.2"})),
        (
            "flush src 198.51.100.2 dst 198.51.100.18",
            (
                "flush",
                (),
                {"source": "198.51.100.2", "destination": "198.51.100.18"},
            ),
        ),
    ],
)
def test_calls(run, calls, line, call):
    status, _, err = run(line)
    assert (status, err) == (0, "")
    assert calls == [call]


@pytest.mark.parametrize(
    ("line", "start"),
    [
        ("", "OBJECT: missing; allowed are link, flow, key, peer, flush"),
        ("tunnel", "tunnel: unknown object; allowed are link, "),
        ("link frob", 'frob: unknown command of "link"; allowed are add, set, delete, prune, show'),
        ("-z link", "-z: unknown option; allowed are -statistics, "),
        ("-", "-: unknown option"),
        ("-n", "netns: a value is missing"),
        ("-n a -n b link", "netns: given twice"),
        ("-b", "batch: a value is missing; allowed is FILE, or - for standard input"),
        ("-b /nonexistent/file", 'batch: cannot open "/nonexistent/file": No such file or directory'),
        ("-b - link", "link: not allowed: -batch takes its commands from the file"),
        ("-c=blue link", 'color: "blue" is unknown; allowed is always or auto or never'),
        ("-j=1 link", "-j=1: unknown option"),
        ("link add", 'name: missing; "link add" needs name NAME'),
        ("link add xm0 local 192.0.2.1", "id: missing"),
        ("link add xm0 id 7", "local: missing"),
        ("link add xm0 id 7 id 8", 'id: given twice: "8" is the second value'),
        ("link add xm0 id 7 vni 8", 'id: given twice: "8" is the second value'),
        ("link add xm0 name xm1", 'name: given twice: "xm1" is the second value'),
        ("link add xm0 xm1", 'xm1: not a keyword of "link add"; allowed are name, mtu, '),
        ("link add xm0 up down", "down: given twice"),
        ("link add xm0 id", "id: a value is missing; allowed is VNI (0 to 16777215)"),
        ("link add xm0 vni", "vni: a value is missing; allowed is VNI (0 to 16777215)"),
        ("link add xm0 id 16777216", "id: 16777216 is out of range, allowed is 0 to 16777215"),
        ("link add xm0 id -1", "id: -1 is out of range, allowed is 0 to 16777215"),
        ("link add xm0 id 1_0", 'id: "1_0" is not a number; allowed is 0 to 16777215'),
        ("link add xm0 id ٤٢", 'id: "٤٢" is not a number'),
        ("link add xm0 mtu 67", "mtu: 67 is out of range, allowed is 68 to the underlay's MTU"),
        ("link add xm0 dstport -1", "dstport: -1 is out of range, allowed is 0 to 65535"),
        ("link add xm0 dstport 65536", "dstport: 65536 is out of range, allowed is 0 to 65535"),
        ("link add xm0 port 4789", "port: a value is missing; allowed is MIN MAX (0 to 65535)"),
        ("link add xm0 srcport 1 65536", "srcport: 65536 is out of range, allowed is 0 to 65535"),
        ("link add xm0 df maybe", 'df: "maybe" is unknown; allowed is unset or set or inherit'),
        ("link add xm0 netns blue", "netns: a link works in the namespace of its underlay only"),
        ("link add xm0 id 7 local 192.0.2.1 group 239.1.1.1 remote 192.0.2.2", "group: given twice"),
        ("link add xm0 arp maybe", 'arp: "maybe" is unknown; allowed is on or off'),
        ("link add xm0 flows 7", "flows: 7 is out of range, allowed is 1024 to 1048576"),
        ("link set xm0 id 7", "id: cannot be changed"),
        ("link set xm0 dstport 7", "dstport: cannot be changed"),
        ("link set xm0 netns blue", "netns: a link cannot leave its namespace"),
        ("link set xm0 index 7", 'index: not a keyword of "link set"'),
        ("link add xm0 ttl 300", "ttl: 300 is out of range, allowed is 1 to 255 or auto or inherit"),
        (
            "link add xm0 tos 1ff",
            'tos: "1ff" is not a TOS byte; allowed is 00 to ff (hexadecimal) or inherit',
        ),
        ("link add xm0 type vxlan", 'type: "vxlan" is unknown; allowed is xmasq'),
        ("link del", "name: missing"),
        ("link del xm0 xm1", 'xm1: not a keyword of "link delete"; allowed are name, type'),
        (
            "link set xm0",
            "link set: nothing to change; allowed are name, up, down, mtu, ",
        ),
        ("link set xm0 fastpath maybe", 'fastpath: "maybe" is unknown; allowed is on or off'),
        ("flow show xm0", 'xm0: not a keyword of "flow show"; allowed are link'),
        ("peer show xm0", 'xm0: not a keyword of "peer show"'),
    ],
)
def test_bad_words(run, calls, line, start):
    refused(run(line), 2, start)
    assert calls == []


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1", 1000),
        ("1s", 1000),
        ("1000ms", 1000),
        ("60", 60_000),
        ("2.5", 2500),
        ("1.2345s", 1234),
        ("10s", 10_000),
    ],
)
def test_lease(text, ms):
    assert words.lease_ms("lease", text) == ms


@pytest.mark.parametrize(
    "text", ["", "0", "0.9", "999ms", "60.1", "61s", "1m", "s", "-5", "1e1", "1 s", "inf"]
)
def test_bad_lease(text):
    with pytest.raises(InputError, match="allowed is 1s to 60s") as error:
        words.lease_ms("lease", text)
    assert error.value.argument == "lease"


@pytest.mark.parametrize(
    "line",
    [
        "link add xm0 id 7 local 192.0.2.1",
        "link del xm0",
        "link set xm0 fastpath off",
        "flush",
        "link add secret-file /nonexistent",
    ],
)
def test_changes_need_root(run, calls, monkeypatch, line):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refused(run(line), 2, "not root: only root can do ")
    assert calls == []


def test_looking_without_root(run, monkeypatch):
    def denied():
        raise XmasqError("the kernel refuses: Operation not permitted") from PermissionError(1, "no")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(api, "peers", denied)
    refused(run("peer"), 2, "not root: ")


# The secret


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(b"sixteen bytes ok\n")
    path.chmod(0o600)
    return path


def test_secret_file(run, calls, secret):
    digest = hashlib.blake2b(b"sixteen bytes ok", digest_size=16).digest()
    line = f"link add xm0 id 42 local 192.0.2.1 secret-file {secret}"
    for content in (b"sixteen bytes ok\n", b"sixteen bytes ok"):
        secret.write_bytes(content)
        assert run(line) == (0, "", "")
        assert calls.pop() == ("create_link", ("xm0",), ADDED | {"secret": digest})
    secret.write_bytes(b"sixteen bytes ok\n\n")
    assert read_secret(str(secret)) != digest
    assert run(f"link set xm0 secret-file {secret}") == (0, "", "")
    assert calls[-1][2]["secret"] == read_secret(str(secret))
    secret.chmod(0o400)
    assert len(read_secret(str(secret))) == 16


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o777])
def test_secret_file_open_to_others(run, calls, secret, mode):
    secret.chmod(mode)
    result = run(f"link add xm0 id 42 local 192.0.2.1 secret-file {secret}")
    refused(result, 2, f'secret-file: "{secret}" has mode {mode:04o}')
    assert calls == []


@pytest.mark.parametrize("content", [b"", b"\n", b"fifteen bytes..", b"fifteen bytes..\n", b"x" * 65537])
def test_secret_file_of_a_wrong_size(secret, content):
    secret.write_bytes(content)
    with pytest.raises(InputError, match="allowed is 16 to 65536"):
        read_secret(str(secret))


def test_secret_file_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    for name in ("fifo", "link", "", "missing"):
        with pytest.raises(InputError) as error:
            read_secret(str(tmp_path / name))
        assert error.value.argument == "secret-file"


def test_secret_file_of_someone_else(secret, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(InputError, match=f"belongs to user {os.getuid()}"):
        read_secret(str(secret))


# What is shown


def test_link_text(run):
    assert run("link show xm0")[1] == (
        "4: xm0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 qdisc noqueue state UNKNOWN mode DEFAULT "
        "group default qlen 1000\n"
        "    link/ether 02:00:00:00:00:01 brd ff:ff:ff:ff:ff:ff\n"
        "    xmasq id 42 local 192.0.2.1 dev eth0 dstport 4789 lease 10s fastpath on\n"
    )
    details = run("-d link show xm0")[1]
    assert details.splitlines()[2].endswith(" fastpath on ttl auto udpcsum")


def test_link_text_of_what_is_not_the_default():
    data = INFO["linkinfo"]["info_data"] | {"remote": "192.0.2.9", "learning": False, "secret": True}
    other = dataclasses.replace(
        LINK,
        remote="192.0.2.9",
        learning=False,
        secret=True,
        fastpath=False,
        lease_ms=1500,
        info=INFO | {"linkinfo": {"info_kind": "xmasq", "info_data": data}, "master": "br0"},
    )
    lines = link.as_text(other, Options()).splitlines()
    assert " master br0 " in lines[0]
    assert lines[2] == (
        "    xmasq id 42 remote 192.0.2.9 local 192.0.2.1 dev eth0 dstport 4789 nolearning lease 1.5s "
        "fastpath off secret"
    )


def test_oneline(run):
    status, out, _ = run("-o link")
    assert status == 0
    assert out.count("\n") == 1
    assert out.count("\\    ") == 2


def test_counters_all_have_their_place():
    stats = {name: at for at, name in enumerate(COUNTERS, 1)}
    lines = counters.counter_lines(stats | {"fallback": 1})
    groups = {line.split()[0]: line for line in lines}
    assert list(groups) == ["encoded", "decoded", "fallback", "negotiation", "bounces", "defence", "other"]
    for name, value in stats.items():
        assert sum(f" {value}" in f"{line},".replace(",", " ,") for line in lines) >= 1, name
    # "other" is for what nobody expects, and for counters that a newer datapath may bring.
    assert groups["other"].split(maxsplit=1)[1] == f"error {stats['error']}"
    assert "surprise 1" in counters.counter_lines({"surprise": 1})[-1]


def test_totals_come_first():
    traffic = Statistics(Traffic(4, 400), Traffic(1, 60), 2, 3, Traffic(5, 500), Traffic(), 0, 1, {})
    lines = link.as_text(dataclasses.replace(LINK, traffic=traffic), Options(stats=True)).splitlines()
    assert lines[3] == (
        "    rx           5 packets, 460 bytes: fast path 4 packets, 400 bytes; "
        "fallback 1 packets, 60 bytes; errors 2, dropped 3"
    )
    assert lines[4].startswith("    tx           5 packets, 500 bytes: fast path 5 packets, 500 bytes; ")
    assert counters.stats64(traffic)["rx"] == {
        "bytes": 460,
        "packets": 5,
        "errors": 2,
        "dropped": 3,
        "fast_bytes": 400,
        "fast_packets": 4,
    }


def test_counters_that_are_0_are_left_out():
    lines = counters.counter_lines(
        LINK.stats | {"encoded": 3, "encoded_bytes": 300, "fb_ttl": 2, "fallback": 2}
    )
    assert lines == [
        "encoded      3 packets, 300 bytes",
        "decoded      0 packets, 0 bytes",
        "fallback     2 packets: ttl 2",
        "negotiation  none",
        "bounces      none",
        "defence      none",
    ]


def test_link_json(run):
    status, out, _ = run("-j link show xm0")
    assert (status, json.loads(out)) == (0, [INFO])
    assert out.count("\n") == 1
    (with_stats,) = json.loads(run("-j -s link show xm0")[1])
    assert with_stats == INFO | {"stats64": {}, "xmasq": LINK.stats}
    assert json.loads(run("-p -j link")[1]) == [INFO]
    assert len(run("-pretty --json link")[1].splitlines()) > 20


def test_only_links_that_are_up(run, monkeypatch):
    down = dataclasses.replace(LINK, name="xm1", up=False, info=INFO | {"ifname": "xm1"})
    monkeypatch.setattr(api, "iter_links", lambda name: iter([LINK, down]))
    assert [one["ifname"] for one in json.loads(run("-j link show up")[1])] == ["xm0"]
    assert len(json.loads(run("-j link show")[1])) == 2


@pytest.mark.parametrize("line", ["link", "-j link", "link show up", "-br link"])
def test_links_are_shown_as_they_come(run, capsys, monkeypatch, line):
    shown = []

    def links(name):
        yield LINK
        shown.append(capsys.readouterr().out)
        yield LINK

    monkeypatch.setattr(api, "iter_links", links)
    status, rest, _ = run(line)
    assert status == 0
    assert "xm0" in shown[0]
    assert "xm0" in rest


@pytest.mark.parametrize(("line", "row"), [("flow", FLOW), ("key", KEY), ("peer", PEER)])
def test_rows_as_json(run, line, row):
    assert json.loads(run(f"-j {line}")[1]) == [dataclasses.asdict(row)]


def test_rows_as_text(run):
    same = (
        "198.51.100.2    > 198.51.100.18   link xm0      vni 42    dscp 8  df   peer 192.0.2.2       "
        "key 7    lease 4.3s "
    )
    assert run("flow")[1] == f"{same} dev eth0 via 192.0.2.254\n"
    assert run("key")[1] == f"{same} granted used\n"
    assert " local 192.0.2.1       mac 02:00:00:00:00:01 > 02:00:00:00:00:02 " in run("-d flow")[1]
    assert run("peer")[1] == (
        "192.0.2.2       local 192.0.2.1       flows 3     keys 4     heard 1.2s ago    ok\n"
    )
    away = dataclasses.replace(PEER, heard_ms_ago=None, verdict="path", off_for_ms=59_000)
    assert peer.as_text(away).endswith(" heard never       path, off for 59.0s")
    direct = dataclasses.replace(FLOW, nexthop=None, df=False)
    assert flow.as_text(direct, Options()).endswith(" dev eth0")
    assert " nodf " in flow.as_text(direct, Options())
    assert key.as_text(dataclasses.replace(KEY, used=False, state="offered"), Options()).endswith(" offered")


def test_flush_says_how_many(run):
    assert run("flush") == (0, "5 ended\n", "")
    assert run("-j flush")[1] == '[{"ended":5}]\n'


@pytest.mark.parametrize("options", [Options(), Options(json=True), Options(json=True, pretty=True)])
def test_rows_leave_one_by_one(monkeypatch, options):
    """However many flows there are, none waits for the last one, and they are never all in memory."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    sizes = []

    def rows():
        for number in range(50):
            sizes.append(len(out.getvalue()))
            yield dataclasses.replace(FLOW, key=number)

    show(rows(), lambda one: flow.as_text(one, options), options)
    assert all(later > sooner for sooner, later in itertools.pairwise(sizes))
    if options.json:
        assert [one["key"] for one in json.loads(out.getvalue())] == list(range(50))


def test_nothing_is_written_before_an_error(run, monkeypatch):
    def unknown(name):
        raise InputError("name", f'there is no device "{name}"')
        yield

    monkeypatch.setattr(api, "flows", unknown)
    refused(run("-j flow show link nosuch"), 2, 'name: there is no device "nosuch"')


def test_brief(run):
    assert run("-br link")[1] == (
        "xm0              UNKNOWN        02:00:00:00:00:01 <BROADCAST,MULTICAST,UP,LOWER_UP> \n"
    )
    assert json.loads(run("-br -j link")[1]) == [
        {key: INFO[key] for key in ("ifname", "operstate", "address", "flags")}
    ]


@pytest.mark.parametrize("option", ["-c", "-color", "-co=always"])
def test_colours_are_those_of_ip(run, option):
    up = {**INFO, "operstate": "UP"}
    line = link.as_text(dataclasses.replace(LINK, info=up), Options(color=True)).splitlines()
    assert line[0].startswith("4: \033[36mxm0\033[0m: <")
    assert " state \033[32mUP\033[0m mode" in line[0]
    assert "link/ether \033[33m02:00:00:00:00:01\033[0m brd" in line[1]
    assert "local \033[35m192.0.2.1\033[0m dev" in line[2]
    assert "\033[36m" in run(f"{option} link")[1]
    assert "\033" not in run(f"{option} -j link")[1]


@pytest.mark.parametrize("option", ["", "-c=never", "-c=auto"])
def test_no_colours(run, option):
    assert "\033" not in run(f"{option} link")[1]


def test_alias_and_altnames_have_lines_of_their_own(run):
    info = INFO | {"ifalias": "to rack 7\n", "altnames": ["one", "two"]}
    lines = link.as_text(dataclasses.replace(LINK, info=info), Options()).splitlines()
    assert [line.strip() for line in lines[3:]] == ["alias to rack 7\\n", "altname one", "altname two"]


def test_group_is_called_so(run):
    data = INFO["linkinfo"]["info_data"] | {"remote": "239.1.1.1"}
    info = INFO | {"linkinfo": {"info_kind": "xmasq", "info_data": data}}
    (*_, line) = link.as_text(dataclasses.replace(LINK, info=info), Options()).splitlines()
    assert line.startswith("    xmasq id 42 group 239.1.1.1 local 192.0.2.1 ")


# Several commands at once

BATCH = """\
# a comment, and an empty line

link set xm0 lease 5
link set xm0 \\
    alias 'to rack 7'
link frob
link del xm0
"""


def test_batch(run, calls, tmp_path, monkeypatch):
    path = tmp_path / "commands"
    path.write_text(BATCH)
    status, _, said = run(f"-b {path}")
    assert status == 1
    assert said.splitlines() == [
        'xmasq: frob: unknown command of "link"; allowed are add, set, delete, prune, show, or "help"',
        f"Command failed {path}:6",
    ]
    assert [call[0] for call in calls] == ["set_link", "set_link"]
    assert calls[1][2] == {"device": {"alias": "to rack 7"}}
    calls.clear()
    assert run(f"-force -b {path}")[0] == 1
    assert [call[0] for call in calls] == ["set_link", "set_link", "delete_link"]
    calls.clear()
    monkeypatch.setattr(sys, "stdin", io.StringIO("peer\nlink del xm0\n"))
    assert run("-batch -")[0] == 0
    assert [call[0] for call in calls] == ["peers", "delete_link"]
    path.write_text("link add 'xm0\n")
    status, _, said = run(f"-b {path}")
    assert (status, said.splitlines()[0]) == (1, "xmasq: batch: No closing quotation")


# Completion


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("l", {"link"}),
        ("link ", {"add", "set", "delete", "prune", "show", "help"}),
        ("li s", {"set", "show"}),
        ("-n blue link d", {"delete"}),
        ("-n ", {"@netns"}),
        ("-br", {"-brief"}),
        ("link set xm0 fastpath ", {"on", "off"}),
        ("link add xm0 df ", {"unset", "set", "inherit"}),
        ("link add xm0 ttl i", {"inherit"}),
        ("link add xm0 srcport 1 ", set()),
        ("link add xm0 secret-file ", {"@file"}),
        ("link add xm0 master ", {"@device"}),
        ("link del ", {"@device", "name", "type"}),
        ("link add xm0 lease 5 le", {"learning"}),
        ("link add xm0 noprox", {"noproxy"}),
        ("link add xm0 proxy noprox", set()),
        ("flow show ", {"link"}),
        ("flush link xm0 pe", {"peer"}),
        ("nosuch x", set()),
    ],
)
def test_completion(run, calls, line, expected):
    status, said, _ = run(["--complete", *line.split(" ")])
    assert (status, set(said.split())) == (0, expected)
    assert calls == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("link s", {"set", "show"}),
        ("li set lo", {"lo"}),
        ("-n ", None),
        ("link add xm0 df ", {"set", "unset"}),
    ],
)
def test_completion_in_bash(tmp_path, line, expected):
    words = ["xmasq", *line.split(" ")]
    script = f"""
source {ROOT}/iproute_ext/completion/xmasq
COMP_WORDS=({" ".join(word or '""' for word in words)}); COMP_CWORD={len(words) - 1}; _xmasq
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    command = tmp_path / "xmasq"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m xmasq_link "$@"\n')
    command.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env, check=True)
    assert done.stderr == ""
    if expected is not None:
        assert expected <= set(done.stdout.split())


def test_completion_of_everything(run):
    """Each keyword of each command is offered where it may stand."""
    for command, grammar in GRAMMARS.items():
        offered = set(run(["--complete", *command.split(), ""])[1].split())
        if command in ("flow", "key"):
            offered = set(run(["--complete", command, "show", ""])[1].split())
        assert {word.name for word in grammar} <= offered, command


# Help


@pytest.mark.parametrize("word", ["help", "-h", "-help", "--help"])
def test_help(run, calls, monkeypatch, word):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run(word) == (0, main.USAGE, "")
    for module in (link, flow, key, peer, flush):
        name = module.__name__.rpartition(".")[2]
        assert run(f"{name} {word}") == (0, module.USAGE, "")
        for command in module.COMMANDS:
            assert run(f"{name} {command.name} {word}") == (0, module.USAGE, "")
    assert calls == []


def test_help_in_the_middle(run, calls):
    assert run("link add xm0 id 42 --help") == (0, link.USAGE, "")
    assert calls == []


@pytest.mark.parametrize("word", ["-V", "-Version", "--version"])
def test_version(run, word):
    status, out, _ = run(word)
    assert status == 0
    assert out.startswith("xmasq ")
    assert out.count("\n") == 1


GRAMMARS = {
    "link add": link.ADD,
    "link delete": link.DELETE,
    "link set": link.SET,
    "link show": link.SHOW,
    "flow": flow.GRAMMAR,
    "key": key.GRAMMAR,
    "peer": peer.GRAMMAR,
    "flush": flush.GRAMMAR,
}


@pytest.mark.parametrize("document", ["docs/cli.md", "iproute_ext/man/xmasq.8"])
def test_documents_know_every_word(document):
    text = (ROOT / document).read_text().replace("\\-", "-")
    for command, grammar in GRAMMARS.items():
        for word in grammar:
            name = word.name.removeprefix("no")
            assert name in text, f"{word.name} of {command}"
    for counter in (*COUNTERS, "fallback", "bounced"):
        assert f"`{counter}`" in text or f"\\fB{counter}\\fR" in text, counter


def test_usage_knows_every_word():
    for module, grammars in ((link, ("link add", "link delete", "link set")), (flush, ("flush",))):
        for grammar in grammars:
            for word in GRAMMARS[grammar]:
                assert word.name.removeprefix("no") in module.USAGE, word.name


# How commands end


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("id", "no"), 2, "xmasq: id: no\n"),
        (XmasqError("the kernel says no"), 1, "xmasq: the kernel says no\n"),
        (XmasqError("two\nlines"), 1, "xmasq: two\\nlines\n"),
        (OSError(28, "No space left on device"), 1, "xmasq: No space left on device\n"),
        (FileNotFoundError(2, "No such file", "/x"), 1, "xmasq: /x: No such file\n"),
        (
            KeyError("oops"),
            1,
            "xmasq: internal error: KeyError: 'oops' (set XMASQ_DEBUG=1 for the traceback)\n",
        ),
        (KeyboardInterrupt(), 130, ""),
        (Interrupted(15), 143, ""),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
    ],
)
def test_errors(run, monkeypatch, error, status, line):
    def fail():
        raise error

    monkeypatch.setattr(api, "peers", fail)
    monkeypatch.delenv("XMASQ_DEBUG", raising=False)
    assert run("peer") == (status, "", line)
    monkeypatch.setenv("XMASQ_DEBUG", "1")
    status_again, _, said = run("peer")
    assert status_again == status
    assert "Traceback" in said
    assert said.endswith(line)


def test_words_that_are_no_text(run, calls):
    refused(run(["link", "add", "\udcff"]), 2, "\\udcff: not valid UTF-8")
    assert calls == []


def test_namespace_is_entered(run, calls, monkeypatch):
    entered = []

    @contextlib.contextmanager
    def netns(name):
        entered.append(name)
        yield
        entered.append("left")

    monkeypatch.setattr(api, "netns", netns)
    assert run("-n blue peer")[0] == 0
    assert run("-netns /proc/1/ns/net -j peer")[0] == 0
    assert entered == ["blue", "left", "/proc/1/ns/net", "left"]


# Signals


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_a_command(run, monkeypatch, signum):
    before = signal.getsignal(signum)

    def slow():
        signal.raise_signal(signum)  # to this thread: the runner has others
        raise AssertionError("nothing came")

    monkeypatch.setitem(slow.__globals__, "__name__", "xmasq_link.slow")
    monkeypatch.setattr(api, "peers", slow)
    assert run("peer") == (128 + signum, "", "")
    assert signal.getsignal(signum) is before


def test_signal_is_ignored_that_the_caller_ignores(run, monkeypatch):
    monkeypatch.setattr(api, "peers", lambda: os.kill(os.getpid(), signal.SIGHUP) or [PEER])
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run("peer")[0] == 0
    finally:
        signal.signal(signal.SIGHUP, old)


class Steps:
    """Code that counts as the project's own, or not, as its module name says."""

    def __init__(self, name):
        self.space = {
            "__name__": name,
            "os": os,
            "signal": signal,
            "asyncio": asyncio,
            "contextlib": contextlib,
        }

    def make(self, text, name):
        exec(text, self.space)
        return self.space[name]


OURS, FOREIGN = "xmasq_link.step", "pyroute2.step"


def kill():
    os.kill(os.getpid(), signal.SIGTERM)


def code(name, text):
    return Steps(name).make(text, "call")


def command(function, *args, held=False):
    """Runs a function as the command line runs a command."""
    with Signals(last=False) as signals, signals.held() if held else contextlib.nullcontext():
        function(*args)


#: Calls f, and would go on.
GO_ON = code(OURS, "def call(f, done):\n f(done)\n done.append('went on')")


def test_foreign_code_is_not_torn():
    """A request of pyroute2 is carried out, and the exception comes when our code goes on."""
    request = code(FOREIGN, "def call(f, done):\n f()\n done.append('request')")
    done = []
    with pytest.raises(Interrupted):
        command(GO_ON, lambda done: request(kill, done), done)
    assert done == ["request"]


def test_our_code_called_by_foreign_code_is_not_torn():
    request = code(FOREIGN, "def call(f, done):\n f(lambda: None, done)\n done.append('request')")
    callback = code(OURS, "def call(f, done):\n import os, signal\n os.kill(os.getpid(), 15)\n f()")
    done = []
    with pytest.raises(Interrupted):
        command(GO_ON, lambda done: request(callback, done), done)
    assert done == ["request"]


def test_an_event_loop_is_not_torn():
    async def request(done):
        for _ in range(3):
            kill()
            await asyncio.sleep(0)
        done.append("answer")

    done = []
    with pytest.raises(Interrupted):
        command(GO_ON, lambda done: asyncio.run(request(done)), done)
    assert done == ["answer"]


def test_clean_up_is_not_torn():
    text = """
def undo(done):
    os.kill(os.getpid(), signal.SIGTERM)
    done.append("undone")
def call(done):
    with contextlib.ExitStack() as stack:
        stack.callback(undo, done)
        raise ValueError
"""
    done = []
    with pytest.raises((Interrupted, ValueError)):
        command(code(OURS, text), done)
    assert done == ["undone"]


def test_held_until_the_end():
    done = []
    with pytest.raises(Interrupted) as error:
        command(GO_ON, lambda done: kill(), done, held=True)
    assert done == ["went on"]
    assert error.value.signum == signal.SIGTERM


def test_second_signal_ends_what_is_held():
    done = []
    with pytest.raises(Interrupted):
        command(GO_ON, lambda done: (kill(), kill()), done, held=True)
    assert done == []


def test_second_signal_does_not_stop_the_clean_up():
    text = """
def call(done):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("went on")
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("undone")
"""
    done = []
    with pytest.raises(Interrupted):
        command(code(OURS, text), done)
    assert done == ["undone"]


def test_waiting_for_a_child_ends():
    script = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    wait = code(OURS, "import subprocess\ndef call(*words):\n subprocess.run(words, capture_output=True)")
    start = time.monotonic()
    with pytest.raises(Interrupted):
        command(wait, sys.executable, "-c", script)
    assert time.monotonic() - start < 10


# As a process


def process(*words, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "xmasq_link", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        **kwargs,
    )


def test_as_a_module():
    done = process("link", "help")
    assert (done.returncode, done.stdout, done.stderr) == (0, link.USAGE, "")
    done = process("link", "frob")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("xmasq: frob: ")


def test_closed_output():
    text = f"{sys.executable} -m xmasq_link"
    for end in (">&-", "2>&-", ">&- 2>&-"):
        for said, status in (("help", 0), ("link frob", 2)):
            line = f"{text} {said} {end}"
            done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == status
            assert "Traceback" not in done.stderr
            assert bool(done.stdout) == (end == "2>&-" and said == "help")


def test_json_without_an_output(run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert main.main(["-j", "flow"]) == 0
    assert run("-j flow")[1] != ""


def loaded(code):
    text = f"import sys\n{code}\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_only_what_is_needed_is_imported():
    """Help and usage errors need nothing; no command needs scapy, and only compiling needs BCC."""
    heavy = {"pyroute2", "asyncio", "scapy", "bcc", "ctypes", "json", "argparse"}
    quick = "from xmasq_link._cli.main import main\nmain({!r})"
    for line in (["help"], ["link", "add", "help"], ["link", "frob"], ["link", "add", "xm0", "id", "x"]):
        assert not loaded(quick.format(line)) & heavy, line
    everything = "import xmasq_link\nfor n in xmasq_link.__all__: getattr(xmasq_link, n)"
    modules = loaded(everything)
    assert "pyroute2" in modules
    assert not modules & {"scapy", "bcc"}
