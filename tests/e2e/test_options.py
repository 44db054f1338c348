# SPDX-License-Identifier: Apache-2.0
"""Every option of `ip link … type vxlan`, and what `ip link` sets on any device: given in `ip`'s words,
and read back from the kernel."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyroute2.netlink import nlmsg_base

from kmod_ebpf import maps as m
from tests.e2e.test_cli import state
from tests.lab import Host, Lab
from xmasq_link import _vxlan, netns
from xmasq_link._cli import linkwords
from xmasq_link._cli.main import main
from xmasq_link._datapath import Datapath

pytestmark = pytest.mark.e2e

Run = Callable[..., str]
KEEPER = "198.51.100.1"
SIX_ADDRESS = "2001:db8::1"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Lab() as lab:
        host = lab.host()
        host.ip("link add br0 type bridge", "link add br1 type bridge", f"addr add {KEEPER}/32 dev eth0")
        host.run("sysctl -q -w net.ipv6.conf.eth0.disable_ipv6=0")
        host.ip(f"addr add {SIX_ADDRESS}/64 dev eth0 nodad")
        # One link that stays: the datapath need not be loaded for each test.
        assert main(["-n", host.name, *f"link add keep0 id 1 local {KEEPER}".split()]) == 0
        yield host


@pytest.fixture
def fresh() -> Iterator[Host]:
    """A host that has no link yet."""
    with Lab() as lab:
        yield lab.host()


@pytest.fixture
def xmasq(host: Host, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command, which has to succeed. Links are gone afterwards."""

    def run(line: str, status: int = 0, on: Host = host) -> str:
        capsys.readouterr()
        code = main(["-n", on.name, *line.split()])
        said = capsys.readouterr()
        assert code == status, said.err
        assert said.err.count("\n") == (1 if status else 0)
        return said.err or said.out

    yield run
    for link in json.loads(run("-j link show")):
        if link["ifname"] != "keep0":
            run(f"link del {link['ifname']}")


def by_ip(host: Host) -> dict[str, Any]:
    (link,) = host.ip_json("-d link show xm0")
    return dict(link)


ADD = "link add xm0 type xmasq id 42 local 192.0.2.1"

#: Words, and what `ip -j -d link show` says of the device then.
VXLAN = {
    "remote 192.0.2.9": {"remote": "192.0.2.9"},
    "group 239.1.1.1 dev eth0": {"group": "239.1.1.1", "link": "eth0"},
    "dstport 8472": {"port": 8472},
    "dstport 0": {"port": 8472},
    "": {"port": 4789, "learning": True, "ageing": 300, "ttl": 0, "df": "unset", "udp_csum": True},
    "srcport 5000 6000": {"port_range": {"low": 5000, "high": 6000}},
    "port 5000 6000": {"port_range": {"low": 5000, "high": 6000}},
    "learning": {"learning": True},
    "nolearning": {"learning": False},
    "ttl 1": {"ttl": 1},
    "ttl 0xff": {"ttl": 255},
    "hoplimit auto": {"ttl": 0},
    "tos b8": {"tos": "0xb8"},
    "dsfield 0x10": {"tos": "0x10"},
    "tos inherit": {"tos": "0x1"},
    "tos AF11": {"tos": "0x28"},
    "df unset": {"df": "unset"},
    "df set": {"df": "set"},
    "df inherit": {"df": "inherit"},
    "ageing 77": {"ageing": 77},
    "ageing none": {"ageing": 300},
    "maxaddress 99": {"limit": 99},
    "maxaddress unlimited": {"limit": None},
    "proxy": {"proxy": True},
    "noproxy": {"proxy": None},
    "rsc": {"rsc": True},
    "norsc": {"rsc": None},
    "l2miss": {"l2miss": True},
    "nol2miss": {"l2miss": None},
    "l3miss": {"l3miss": True},
    "nol3miss": {"l3miss": None},
    "udpcsum": {"udp_csum": True},
    "noudpcsum": {"udp_csum": False},
    "udp6zerocsumtx": {"udp_zero_csum6_tx": True},
    "noudp6zerocsumtx": {"udp_zero_csum6_tx": False},
    "udp6zerocsumrx": {"udp_zero_csum6_rx": True},
    "noudp6zerocsumrx": {"udp_zero_csum6_rx": False},
    "remcsumtx": {"remcsum_tx": True},
    "noremcsumtx": {"remcsum_tx": None},
    "remcsumrx": {"remcsum_rx": True},
    "noremcsumrx": {"remcsum_rx": None},
    "noexternal": {"external": None},
    "novnifilter": {"vnifilter": None},
}
#: The same, for what only a younger `ip` shows: read back by us.
YOUNG = {
    "ttl inherit": {"ttl": "inherit"},
    "localbypass": {"localbypass": True},
    "nolocalbypass": {"localbypass": False},
    "reserved_bits 0x100000000": {"reserved_bits": 1 << 32},
    "flowlabel 0": {"label": 0},
    "nomcroute": {},
}
#: Which kernel brought these; older ones do not know them (docs/cli.md).
SINCE = {"localbypass": (6, 5), "reserved_bits": (6, 14)}


def known(option: str) -> bool:
    """Whether this kernel is young enough for an option."""
    running = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    return running >= SINCE.get(option, (0, 0))


def subset(expected: dict[str, Any], actual: dict[str, Any]) -> bool:
    return all(actual.get(key) == value for key, value in expected.items())


@pytest.mark.parametrize("words", VXLAN)
def test_reaches_the_kernel(host, xmasq, words):
    xmasq(f"{ADD} {words}")
    data = by_ip(host)["linkinfo"]["info_data"]
    assert (data["id"], data["local"]) == (42, "192.0.2.1")
    assert subset(VXLAN[words], data)


@pytest.mark.parametrize("words", YOUNG)
def test_reaches_a_young_kernel(xmasq, words):
    option = words.split()[0].removeprefix("no")
    if not known(option) and words != "localbypass":  # that is what they do anyway
        assert xmasq(f"{ADD} {words}", 2) == f"xmasq: {option}: this kernel does not know it\n"
        assert "xm0" not in [link["ifname"] for link in json.loads(xmasq("-j link show"))]
        return
    xmasq(f"{ADD} {words}")
    (link,) = json.loads(xmasq("-j link show xm0"))
    assert subset(YOUNG[words] if known(option) else {}, link["linkinfo"]["info_data"])


#: Over IPv6: words, and what `ip` says. The host's address is 2001:db8::1.
SIX = {
    "remote 2001:db8::9": {"remote6": "2001:db8::9"},
    "group ff05::100 dev eth0": {"group6": "ff05::100", "link": "eth0"},
    "flowlabel 0x12345": {"label": "0x12345"},
    "label 0": {"label": None},
    "udp6zerocsumtx": {"udp_zero_csum6_tx": True},
    "noudp6zerocsumtx": {"udp_zero_csum6_tx": False},
    "ttl 9 tos 10 df unset": {"ttl": 9, "df": "unset"},
}


@pytest.mark.parametrize("words", SIX)
def test_reaches_the_kernel_over_ipv6(host, xmasq, words):
    xmasq(f"link add xm0 type xmasq id 42 local {SIX_ADDRESS} {words}")
    data = by_ip(host)["linkinfo"]["info_data"]
    assert (data["id"], data["local6"]) == (42, SIX_ADDRESS)
    assert subset(SIX[words], data)


def test_ipv6_link_changed(host, xmasq):
    xmasq(f"link add xm0 type xmasq id 42 local {SIX_ADDRESS}")
    xmasq("link set xm0 remote 2001:db8::77 flowlabel 7 ttl 5")
    data = by_ip(host)["linkinfo"]["info_data"]
    assert subset({"remote6": "2001:db8::77", "label": "0x7", "ttl": 5}, data)
    line = xmasq("link set xm0 remote 192.0.2.9", 2)
    assert line.startswith("xmasq: remote: ")
    # The second half fails, so the first is taken back: there was no remote before it.
    xmasq("link del xm0")
    xmasq(f"link add xm0 type xmasq id 42 local {SIX_ADDRESS}")
    xmasq("link set xm0 remote 2001:db8::77 master xm0", 2)
    assert "remote6" not in by_ip(host)["linkinfo"]["info_data"]


def test_mcroute(xmasq):
    """The kernel takes it without telling; 2 it would refuse, so it does look at it. Older ones know none."""
    line = f"{ADD} mcroute group 239.1.1.1 dev eth0"
    release = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
    if release >= (6, 17):
        xmasq(line)
    else:
        assert xmasq(line, 2) == "xmasq: mcroute: this kernel does not know it\n"


def test_each_word_of_ip_is_known():
    """`ip link help vxlan` of this machine, and of the youngest iproute2 that we know of."""
    import subprocess

    said = subprocess.run(["ip", "link", "help", "vxlan"], capture_output=True, text=True)
    usage = (said.stdout + said.stderr).partition("Where:")[0].removeprefix("Usage: ... vxlan")
    words = set(re.findall(r"(?:\[no\])?\b[a-z][a-z0-9_]+\b", usage.replace("[no]", "")))
    words |= {"id", "vni", "localbypass", "reserved_bits", "mcroute", "hoplimit", "dsfield", "label", "port"}
    known = {spelling for word in linkwords.ADD for spelling in (word.name, *word.also)}
    assert len(words) > 25
    assert words <= known


REFUSED = {
    "external": "external: not for an xmasq link: the device would have no VNI",
    "vnifilter": "vnifilter: not for an xmasq link: ",
    "gbp": "gbp: not for an xmasq link: an encoded packet has no room for the group policy id",
    "gpe": "gpe: not for an xmasq link: its packets have no inner Ethernet header",
    "flowlabel 1": "flowlabel: is for an IPv6 local only",
    "srcport 6000 5000": "srcport: 6000 to 5000 is no range",
    "group 239.1.1.1": 'remote: 239.1.1.1 is a multicast group, which needs "dev" with it',
    "group 239.1.1.1 dev eth0 mtu 1451": "mtu: 1451 is out of range, allowed is 68 to 1450",
    "remote 0.0.0.0": "remote: 0.0.0.0 is not a unicast address",
    "tos nosuch": 'tos: "nosuch" is no TOS byte',
    "reserved_bits 0x0800000000000000": "the kernel refuses the device: Invalid argument (Used bits ",
    "mark 4": "mark: 4 is not a code point for local use",
    "mark 7": "mark: mark and bounce must differ, and both are 7",
    "bounce 3": "bounce: mark and bounce must differ, and both are 3",
    "mark 11 key-bits 1": "mark: 11 leaves no room for key bits",
    "master nosuch": 'master: there is no device "nosuch"',
    "group nosuch": 'devgroup: "nosuch" is no group',
    "altname br0": 'altname: a device "br0" exists already',
    "address ff:ff:ff:ff:ff:ff": "address: ff:ff:ff:ff:ff:ff is not a unicast link layer address",
    "broadcast 1": 'broadcast: "1" is not a link layer address',
    "addrgenmode x": 'addrgenmode: "x" is unknown, allowed is eui64, ',
    f"alias {'x' * 255}": "alias: has 255 bytes, allowed are 254",
    "index 1": "index: 1 is lo's already",
    "netns blue": "netns: a link works in the namespace of its underlay only",
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_with_the_reason(host, xmasq, words):
    before = state(host)
    option = words.split()[0]
    why = REFUSED[words] if known(option) else f"{option}: this kernel does not know it"
    assert xmasq(f"{ADD} {words}", 2).startswith(f"xmasq: {why}")
    assert state(host) == before


def test_unknown_to_the_kernel(host, xmasq, monkeypatch):
    """The kernel passes over an attribute that it does not know; here it stands for one that it drops."""
    option = next(option for option in _vxlan.OPTIONS if option.name == "mcroute")
    monkeypatch.setattr(_vxlan, "_in_btf", lambda attribute: False)
    assert xmasq(f"{ADD} {option.name}", 2) == "xmasq: mcroute: this kernel does not know it\n"
    assert all(link["ifname"] != "xm0" for link in host.ip_json("link show"))


def test_change_unknown_to_the_kernel(host, xmasq, monkeypatch):
    """As before Linux 6.5: the device does not tell of it."""
    value = _vxlan._value

    def without(option: _vxlan.Option, get: Callable[[str], Any]) -> Any:
        return None if option.name == "localbypass" else value(option, get)

    xmasq(ADD)
    monkeypatch.setattr(_vxlan, "_value", without)
    monkeypatch.setattr(_vxlan, "_in_btf", lambda attribute: False)
    before = state(host)
    assert xmasq("link set xm0 nolocalbypass", 2) == "xmasq: localbypass: this kernel does not know it\n"
    xmasq("link set xm0 localbypass")
    assert state(host) == before


#: Of any device: words, and what `ip -j -d link show` says then.
DEVICE = {
    "mtu 1400": {"mtu": 1400},
    "address 02:00:00:00:00:07": {"address": "02:00:00:00:00:07"},
    "broadcast 02:00:00:00:00:08": {"broadcast": "02:00:00:00:00:08"},
    "txqueuelen 77": {"txqlen": 77},
    "qlen 0x4d": {"txqlen": 77},
    "alias to-rack-7": {"ifalias": "to-rack-7"},
    "altname a-long-name-of-the-link": {"altnames": ["a-long-name-of-the-link"]},
    "group 7": {"group": "7"},
    "group default": {"group": "default"},
    "master br0": {"master": "br0"},
    "vrf br1": {"master": "br1"},
    "nomaster": {"master": None},
    "addrgenmode none": {"inet6_addr_gen_mode": "none"},
    "protodown on": {"proto_down": True},
    "gso_max_size 16000": {"gso_max_size": 16000},
    "gso_max_segs 40": {"gso_max_segs": 40},
    "gro_max_size 16000": {"gro_max_size": 16000},
}
CREATION = {
    "index 7777": {"ifindex": 7777},
    "numtxqueues 3 numrxqueues 2": {"num_tx_queues": 3, "num_rx_queues": 2},
}
FLAGS = {
    "up": ("UP", True),
    "down": ("UP", False),
    "arp off": ("NOARP", True),
    "arp on": ("NOARP", False),
    "multicast off": ("MULTICAST", False),
    "multicast on": ("MULTICAST", True),
    "allmulticast on": ("ALLMULTI", True),
    "promisc on": ("PROMISC", True),
    "dynamic on": ("DYNAMIC", True),
    "trailers off": ("NOTRAILERS", True),
}


def unknown(host: Host, words: str) -> bool:
    """Whether the kernel is older than this setting, which its devices tell of (Linux 5.17)."""
    return words.startswith("gro_max_size") and "gro_max_size" not in host.ip_json("link show lo")[0]


@pytest.mark.parametrize("words", DEVICE | CREATION)
def test_settings_of_a_device_at_creation(host, xmasq, words):
    command = f"link add xm0 {words} type xmasq id 42 local 192.0.2.1"
    if unknown(host, words):
        assert xmasq(command, 2) == f"xmasq: {words.split()[0]}: this kernel does not know it\n"
        assert all(link["ifname"] != "xm0" for link in host.ip_json("link show"))
        return
    xmasq(command)
    assert subset((DEVICE | CREATION)[words], by_ip(host))


@pytest.mark.parametrize("words", DEVICE)
def test_settings_of_a_device_later(host, xmasq, words):
    xmasq(ADD)
    if unknown(host, words):
        assert xmasq(f"link set xm0 {words}", 2) == (
            f"xmasq: {words.split()[0]}: this kernel does not know it\n"
        )
        return
    xmasq(f"link set xm0 {words}")
    assert subset(DEVICE[words], by_ip(host))


def test_a_setting_that_the_kernel_would_pass_over(host, xmasq, monkeypatch):
    """As before Linux 5.17: devices do not tell of it."""
    get_attr = nlmsg_base.get_attr

    def without(self: nlmsg_base, attribute: str, *default: Any) -> Any:
        return None if attribute == "IFLA_GRO_MAX_SIZE" else get_attr(self, attribute, *default)

    monkeypatch.setattr(nlmsg_base, "get_attr", without)
    said = "xmasq: gro_max_size: this kernel does not know it\n"
    assert xmasq(f"{ADD} gro_max_size 16000", 2) == said
    assert all(link["ifname"] != "xm0" for link in host.ip_json("link show"))
    xmasq(ADD)
    before = state(host)
    assert xmasq("link set xm0 alias new gro_max_size 16000", 2) == said
    assert state(host) == before


@pytest.mark.parametrize("words", FLAGS)
@pytest.mark.parametrize("later", [False, True])
def test_flags(host, xmasq, words, later):
    flag, there = FLAGS[words]
    xmasq(ADD if later else f"{ADD} {words}")
    if later:
        xmasq(f"link set dev xm0 {words}")
    assert (flag in by_ip(host)["flags"]) is there


def test_several_flags_and_settings_at_once(host, xmasq):
    xmasq(f"{ADD} up arp off promisc on multicast off alias one mtu 1300 group 9")
    link = by_ip(host)
    assert {"UP", "NOARP", "PROMISC"} <= set(link["flags"])
    assert "MULTICAST" not in link["flags"]
    assert subset({"ifalias": "one", "mtu": 1300, "group": "9"}, link)
    xmasq("link set xm0 down arp on promisc off multicast on nomaster")
    assert {"UP", "NOARP", "PROMISC"}.isdisjoint(by_ip(host)["flags"])


def test_found_by_its_altname(xmasq):
    xmasq(f"{ADD} altname a-long-name-of-the-link")
    (link,) = json.loads(xmasq("-j link show a-long-name-of-the-link"))
    assert (link["ifname"], link["altnames"]) == ("xm0", ["a-long-name-of-the-link"])
    xmasq("link set a-long-name-of-the-link alias x")
    xmasq("link del a-long-name-of-the-link")
    assert xmasq("link show xm0", 2) == 'xmasq: name: there is no device "xm0"\n'


def test_mtu_leaves_room_where_the_fallback_may_not_fragment(host, xmasq):
    for words, mtu in (("", 1500), ("df unset", 1500), ("df set", 1450), ("df inherit", 1450)):
        xmasq(f"{ADD} {words}")
        assert by_ip(host)["mtu"] == mtu
        xmasq("link del xm0")


# A running link

CHANGES = {
    "remote 192.0.2.77": {"remote": "192.0.2.77"},
    "nolearning": {"learning": False},
    "ageing 55": {"ageing": 55},
    "ttl 9": {"ttl": 9},
    "ttl auto": {"ttl": 0},
    "tos 20": {"tos": "0x20"},
    "df set": {"df": "set"},
    "type xmasq ttl 3 remote 192.0.2.78": {"ttl": 3, "remote": "192.0.2.78"},
}


@pytest.mark.parametrize("words", CHANGES)
def test_changes(host, xmasq, words):
    xmasq(f"{ADD} ttl 64 remote 192.0.2.9 lease 5")
    with link_of(host) as before:
        pass
    xmasq(f"link set xm0 {words}")
    data = by_ip(host)["linkinfo"]["info_data"]
    assert subset(CHANGES[words], data)
    with link_of(host) as after:
        assert after.tx_gen != before.tx_gen  # flows ask the FDB anew
        assert bool(after.flags & m.LINK_LEARNING) is data["learning"]
        assert (after.lease_ms, after.flags & m.LINK_UP) == (5000, m.LINK_UP)


@contextlib.contextmanager
def link_of(host: Host) -> Iterator[m.Link]:
    """The link in the maps."""
    from pyroute2 import IPRoute

    with netns(host.name), IPRoute() as ipr, Datapath.find(ipr) or contextlib.nullcontext() as dp:
        yield next(link for link in dp.links().values() if link.vni == 42)


def test_localbypass_can_be_changed(xmasq):
    xmasq(ADD)
    if not known("localbypass"):
        assert xmasq("link set xm0 nolocalbypass", 2) == "xmasq: localbypass: this kernel does not know it\n"
        xmasq("link set xm0 localbypass")  # it always does that
        return
    xmasq("link set xm0 nolocalbypass")
    (link,) = json.loads(xmasq("-j link show xm0"))
    assert link["linkinfo"]["info_data"]["localbypass"] is False


UNCHANGEABLE = {
    "id 43": "id: cannot be changed: ",
    "local 192.0.2.1": "local: cannot be changed: ",
    "dstport 4790": "dstport: cannot be changed: ",
    "segment-bits 6": "segment-bits: cannot be changed: ",
    "flows 2048": "flows: cannot be changed: ",
    "ttl inherit": "ttl: can be given when a link is made only",
    "srcport 1 2": "srcport: can be given when a link is made only",
    "proxy": "proxy: can be given when a link is made only",
    "noudpcsum": "udpcsum: can be given when a link is made only",
    "maxaddress 7": "maxaddress: can be given when a link is made only",
    "group 239.1.1.1": 'remote: 239.1.1.1 is a multicast group, which needs "dev" with it',
    "netns blue": "netns: a link cannot leave its namespace",
    "name br0": 'name: a device "br0" exists already',
    "name this-is-too-long": 'name: "this-is-too-long" is not a device name',
    "mtu 1501": "mtu: 1501 is out of range",
    "ttl 9 master nosuch": 'master: there is no device "nosuch"',
    "fastpath off ttl 9 master xm0": "the kernel refuses: ",
}


@pytest.mark.parametrize("words", UNCHANGEABLE)
def test_what_cannot_be_changed(host, xmasq, words):
    xmasq(f"{ADD} ttl 64")
    before, (link,) = by_ip(host), json.loads(xmasq("-j link show xm0"))
    line = xmasq(f"link set xm0 {words}", 2)
    assert line.startswith(f"xmasq: {UNCHANGEABLE[words]}")
    assert by_ip(host) == before
    assert json.loads(xmasq("-j link show xm0")) == [link]


def test_rename(host, xmasq):
    xmasq(f"{ADD} up")
    xmasq("link set dev xm0 down")
    xmasq("link set dev xm0 name xm1 up")
    (link,) = json.loads(xmasq("-j link show xm1"))
    assert (link["ifname"], "UP" in link["flags"]) == ("xm1", True)


def test_new_address_is_ours(host, xmasq):
    """The datapath knows the link's own address: it answers for it."""
    xmasq(ADD)
    xmasq("link set xm0 address 02:00:00:00:00:99")
    with link_of(host) as link:
        assert bytes(link.mac) == bytes.fromhex("020000000099")


# Of xmasq


def test_code_points_and_sizes(fresh, xmasq):
    xmasq(f"{ADD} mark 11 bounce 15 flows 2048 segment-bits 5 fastpath off", on=fresh)
    from pyroute2 import IPRoute

    with netns(fresh.name), IPRoute() as ipr, Datapath.find(ipr) or contextlib.nullcontext() as dp:
        conf = dp.conf()
        assert (conf.mark, conf.bounce, conf.seg_bits) == (11, 15, 5)
        assert {dp.maps[name].max_entries for name in ("flows", "txkeys", "grants")} == {2048}
    (link,) = json.loads(xmasq("-j link show", on=fresh))
    assert link["linkinfo"]["info_data"]["fastpath"] is False
    second = "link add xm1 id 43 local 192.0.2.1"
    for words in ("mark 3", "bounce 7", "flows 65536", "segment-bits 6"):
        line = xmasq(f"{second} {words}", 2, on=fresh)
        assert line.startswith(f"xmasq: {words.split()[0]}: all links of a host have the same, and it is ")
    xmasq(f"{second} mark 11 bounce 15 flows 2048 segment-bits 5", on=fresh)


def test_another_mark_carries_traffic():
    """With MARK and BOUNCE of the operator's choice flows are encoded as with the default."""
    from tests.lab import routed_overlay
    from tests.lab import xmasq_json as shown

    with Lab() as lab:
        hosts = lab.hosts(2)
        overlay = routed_overlay(hosts, "xmasq", options=["mark", "43", "bounce", "63"])
        a, b = overlay.containers
        assert a.ping(b, count=20).lost == 0
        (link,) = shown(hosts[0], "-s", "link", "show")
        assert link["xmasq"]["encoded"] >= 15


@pytest.mark.parametrize("words", ["group 239.1.1.1", "df set", "remcsumrx rsc noudpcsum"])
def test_traffic_with(words):
    """Options that change what the fallback looks like, or where it goes: both ways carry packets."""
    from tests.lab import bridged_overlay, tcp_transfer
    from tests.lab import xmasq as command
    from tests.lab import xmasq_json as shown

    with Lab() as lab:
        hosts = lab.hosts(2)
        overlay = bridged_overlay(hosts, "xmasq", options=words.split())
        a, b = overlay.containers
        if "remcsum" not in words:  # such links have no larger MTU
            for container in overlay.containers:
                container.ip("link set eth0 mtu 1450")
        if "group" in words:  # instead of the list of all hosts
            for host in hosts:
                for other in hosts:
                    if other is not host:
                        entry = f"00:00:00:00:00:00 dev xm0 dst {other.address}"
                        host.bridge(f"fdb del {entry} self permanent")
        assert a.ping(b, count=30, interval=0.02).received >= 28
        assert tcp_transfer(a, b, 300_000).size == 300_000
        (link,) = shown(hosts[0], "-s", "link", "show", "xm0")
        assert link["xmasq"]["encoded"] > 20
        for host in hosts:
            command(host, "link", "set", "xm0", "fastpath", "off")
        assert tcp_transfer(a, b, 300_000).size == 300_000


# What `ip` prints, we print


def test_details_are_words_that_add_takes(host, xmasq):
    young = [
        word
        for word in ("nolocalbypass", "reserved_bits 0x100000000")
        if known(word.split()[0].removeprefix("no"))
    ]
    phrases = ["ttl inherit", "tos 0xb8", "df set", "srcport 5000 6000", "maxaddress 9", *young]
    xmasq(f"{ADD} {' '.join(phrases)} ageing 77 proxy noudpcsum")
    line = xmasq("-d link show xm0").splitlines()[2]
    found = line.strip().removeprefix("xmasq ").split()
    for phrase in phrases:
        assert f" {phrase}" in line
    before = by_ip(host)
    xmasq("link del xm0")
    again = " ".join(word for word in found if word != "noflowlabel")
    xmasq(f"link add xm0 index {before['ifindex']} address {before['address']} {again}")
    assert by_ip(host)["linkinfo"] == before["linkinfo"]
