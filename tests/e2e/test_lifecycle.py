# SPDX-License-Identifier: Apache-2.0
"""A link comes at little cost, and goes without a trace, while the underlay carries on."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest

from kmod_ebpf import bpf
from tests.lab import Host, patience, tcp_transfer, udp_echo, xmasq

from .observe import Receiver, Stream, maps_of, negotiate, programs, seen, stats, until, watch

pytestmark = pytest.mark.e2e


def exists(opener, number: int) -> bool:
    try:
        os.close(opener(number))
    except FileNotFoundError:
        return False
    return True


def hooks(host: Host) -> dict[str, dict[str, int]]:
    return {link["ifname"]: programs(host, link["ifname"]) for link in host.ip_json("link show")}


def test_deletion_leaves_nothing_and_the_underlay_alone(lab, make):
    hosts = lab.hosts(2)
    overlay = make(hosts)
    a, b = overlay.containers
    negotiate(a, b)
    tcp_transfer(a, b, 1_000_000)
    ids = {number for host in hosts for hook in hooks(host).values() for number in hook.values()}
    maps = {number for program in ids for number in maps_of(program)}
    assert len(ids) == 8
    assert len(maps) > 20
    rate = round(5000 / patience(1))  # no more than the machine can carry
    with Stream(*hosts, rate=rate) as there, Stream(*reversed(hosts), rate=rate) as back:
        for host in hosts:
            there.wait_for(len(there.numbers) + 300)
            back.wait_for(len(back.numbers) + 300)
            xmasq(host, "link", "del", "xm0")
        there.wait_for(len(there.numbers) + 300)
        back.wait_for(len(back.numbers) + 300)
    assert [(one.lost, one.duplicates) for one in (there, back)] == [(0, 0)] * 2
    for host in hosts:
        assert "xm0" not in [link["ifname"] for link in host.ip_json("link show")]
        assert not any(hooks(host).values())
    # The kernel frees them later.
    until(lambda: not any(exists(bpf.prog_fd, number) for number in ids), "programs are gone")
    until(lambda: not any(exists(bpf.map_fd, number) for number in maps), "maps are gone")


def test_deletion_of_one_link_of_two(lab, make):
    hosts = lab.hosts(2)
    overlay = make(hosts)
    a, b = overlay.containers
    negotiate(a, b)
    xmasq(hosts[1], "link", "add", "xm1", "id", "7", "local", "192.0.2.2", "up")
    # The second link has the programs of the first.
    assert programs(hosts[1], "xm0") == programs(hosts[1], "xm1")
    kept = hooks(hosts[1])
    with Stream(a, b, rate=1000) as stream:
        stream.wait_for(100)
        xmasq(hosts[1], "link", "del", "xm1")
        stream.wait_for(len(stream.numbers) + 200)
    assert (stream.lost, stream.duplicates) == (0, 0)
    assert stats(hosts[1])["bounced"] == stats(hosts[0])["bounced"] == 0
    del kept["xm1"]
    assert hooks(hosts[1]) == kept


def test_deletion_stops_the_peers(lab, make):
    """What a peer still encodes must not reach the host's own services as from the peer's host."""
    overlay = make(lab.hosts(2))
    a, b = overlay.containers
    sender, receiver = overlay.hosts
    negotiate(a, b)
    with Stream(a, b, rate=20_000) as stream, Receiver(receiver, stream.port) as own:
        stream.wait_for(200)
        with watch(receiver, "udp") as capture:
            xmasq(receiver, "link", "del", "xm0")
            sent = stream.sent
            until(lambda: stream.sent > sent + 1000, "the peer goes on")
        assert own.receive(0.1) is None
    late = [packet.kind for packet in seen(capture) if packet.source == sender.address][-500:]
    assert set(late) == {"fallback"}


def test_a_link_made_again_works_again(lab, make):
    seconds = patience(2)
    lease, hold = f"{seconds:g}s", seconds + max(2, seconds / 2)
    overlay = make(lab.hosts(2), options=["lease", lease])
    a, b = overlay.containers
    there, host = overlay.hosts
    begin = time.monotonic()
    negotiate(a, b)
    xmasq(host, "link", "del", "xm0")
    words = ["link", "add", "xm0", "address", overlay.lladdr(host), "id", "42", "local", host.address]
    if overlay.mode == "bridged":
        xmasq(host, *words, "lease", lease)
        host.ip("link set xm0 master br0", "link set xm0 up")
        host.bridge(f"fdb append 00:00:00:00:00:00 dev xm0 dst {there.address} self permanent")
    else:
        xmasq(host, *words, "lease", lease, "nolearning")
        via = overlay.link_address(there)
        host.ip(
            f"addr add {overlay.link_address(host)}/32 dev xm0",
            "link set xm0 up",
            f"neigh add {via} lladdr {overlay.lladdr(there)} dev xm0 nud permanent",
            f"route add {overlay.subnet(there)} via {via} dev xm0 onlink",
        )
        host.bridge(f"fdb append {overlay.lladdr(there)} dev xm0 dst {there.address} self permanent")
    # It gives no keys until those of before have ended, but VXLAN works at once.
    assert a.ping(b, count=5).received == 5
    assert udp_echo(b, a, count=50).lost == 0
    decoded = stats(host)["decoded"]
    assert decoded == 0 or time.monotonic() - begin > hold  # a slow machine may have come so late
    until(lambda: time.monotonic() - begin > hold, "the keys of before have ended", timeout=hold)
    negotiate(a, b)
    assert tcp_transfer(a, b, 1_000_000).size == 1_000_000
    assert stats(host)["decoded"] > 0


_MEASURE = """
import json, resource, subprocess, sys, time
begin = time.monotonic()
status = subprocess.run(sys.argv[1:]).returncode
seconds = time.monotonic() - begin
print(json.dumps([status, seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]))
"""


def test_cost_of_link_add(lab):
    """The first link of a machine compiles the datapath; others, on any host, find it compiled."""
    hosts = lab.hosts(2)
    add = ["link", "add", "xm0", "id", "42", "local", hosts[0].address]
    words = [sys.executable, "-m", "xmasq_link", *add]
    # A file system over the cache, seen by this process only.
    hide = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /var/cache && exec "$@"', "sh"]
    cost = {}
    for name, command in (("cold", [*hide, *words]), ("warm", words)):
        done = hosts[0].run([sys.executable, "-S", "-c", _MEASURE, *command], timeout=120)
        status, seconds, peak = json.loads(done.stdout)
        assert status == 0, done.stderr
        print(f"link add, {name}: {seconds:.2f} s, {peak:.0f} MB at most")
        cost[name] = peak
        xmasq(hosts[0], "link", "del", "xm0")
    assert 60 < cost["cold"] < 160
    assert cost["warm"] < 60


def test_found_by_other_processes(lab):
    """Nothing but the kernel knows of a link; ``ip netns exec`` mounts another /sys, too."""
    host = lab.host()
    command = [sys.executable, "-m", "xmasq_link"]

    def execute(*words: str) -> str:
        process = lab.start(["ip", "netns", "exec", host.name, *command, *words])
        out, err = process.communicate(timeout=patience(30))
        assert (process.returncode, err) == (0, "")
        return out

    xmasq(host, "link", "add", "xm0", "id", "42", "local", host.address)
    shown = xmasq(host, "-j", "link", "show", "xm0").stdout
    assert json.loads(shown)[0]["linkinfo"]["info_data"]["id"] == 42
    assert host.run([*command, "-j", "link", "show"]).stdout == shown
    assert execute("-j", "link", "show") == shown
    execute("link", "del", "xm0")
    assert xmasq(host, "-j", "link", "show").stdout == "[]\n"


_FILTER_FIRST = """
from pyroute2 import IPRoute
from kmod_ebpf import bpf
# r0 = -1; exit
program = bpf.prog_load("foreign", bytes.fromhex("b7000000ffffffff9500000000000000"))
with IPRoute() as ipr:
    (index,) = ipr.link_lookup(ifname="eth0")
    if not any(q.get_attr("TCA_KIND") == "clsact" for q in ipr.get_qdiscs(index)):  # else the link needed it
        ipr.tc("add", "clsact", index)
    ipr.tc("add-filter", "bpf", index, 1, fd=program, name="foreign", parent=0xFFFFFFF2, direct_action=True)
import xmasq_link
print([link.name for link in xmasq_link.links()])
"""


def test_found_by_a_process_that_has_set_filters(lab):
    """The API works beside whatever else its user does with pyroute2."""
    host = lab.host()
    xmasq(host, "link", "add", "xm0", "id", "42", "local", host.address)
    assert host.python(_FILTER_FIRST) == "['xm0']\n"
