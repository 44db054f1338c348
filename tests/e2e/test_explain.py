# SPDX-License-Identifier: Apache-2.0
"""xmasq explain: names the condition that keeps a flow in the fallback."""

from __future__ import annotations

import pytest

import xmasq_link
from tests.e2e.observe import meet, negotiate, strip
from tests.lab import Lab, Overlay, bridged_overlay, routed_overlay, xmasq, xmasq_json

pytestmark = pytest.mark.e2e


def unmet(overlay: Overlay) -> tuple[bool, set[str]]:
    """Whether the first container's flow to the second is said to be encoded, and what is not met."""
    a, b = overlay.containers[:2]
    found = xmasq_link.explain("xm0", a.address, b.address, netns=a.host.name)
    assert all(bool(c.hint) == (not c.met) for c in found.conditions)
    return found.encoded, {c.name for c in found.conditions if c.met is False}


def test_from_the_first_packet_on(lab, make):
    overlay = make(lab.hosts(2))
    a, b = overlay.containers
    encoded, names = unmet(overlay)
    assert not encoded
    assert "key" in names
    meet(overlay)
    negotiate(a, b)
    assert unmet(overlay) == (True, set())
    lines = xmasq(a.host, "explain", "xm0", a.address, b.address).stdout.splitlines()
    assert lines[0] == f"{a.address} > {b.address} by xm0: encoded"
    assert all(line.startswith("    ok  ") for line in lines[1:])
    (found,) = xmasq_json(a.host, "explain", "xm0", a.address, b.address)
    assert (found["encoded"], found["peer"]) == (True, b.host.address)
    assert {"name", "met", "text", "hint"} == set(found["conditions"][0])


def test_what_the_operator_did(lab):
    overlay = routed_overlay(lab.hosts(2))
    a, b = overlay.containers
    meet(overlay)
    negotiate(a, b)
    xmasq(a.host, "link", "set", "xm0", "fastpath", "off")
    encoded, names = unmet(overlay)
    assert (encoded, "fast path" in names) == (False, True)
    xmasq(a.host, "link", "set", "xm0", "fastpath", "on")
    negotiate(a, b)
    assert unmet(overlay)[0]
    a.host.ip("link set xm0 down")
    encoded, names = unmet(overlay)
    assert (encoded, "link" in names) == (False, True)


def test_a_hook_that_others_took_away(lab):
    overlay = routed_overlay(lab.hosts(2))
    a, b = overlay.containers
    meet(overlay)
    negotiate(a, b)
    strip(a.host, "eth0", ["egress"])
    encoded, names = unmet(overlay)
    assert (encoded, names) == (False, {"hooks"})


def test_a_peer_that_only_speaks_vxlan(lab):
    overlay = routed_overlay(lab.hosts(2), ["xmasq", "vxlan"])
    a, b = overlay.containers
    assert a.ping(b, count=3).lost == 0
    encoded, names = unmet(overlay)
    assert not encoded
    assert names == {"peer speaks xmasq", "key"}


def test_a_destination_that_nobody_knows(lab):
    overlay = bridged_overlay(lab.hosts(2))
    a = overlay.containers[0]
    found = xmasq_link.explain("xm0", a.address, "198.51.100.200", netns=a.host.name)
    assert not found.encoded
    by_name = {c.name: c for c in found.conditions}
    assert by_name["destination MAC"].met is None
    assert by_name["key"].met is False


BAD = {
    "no link": ("explain", "LINK"),
    "no source": ("explain xm0", "SOURCE"),
    "no destination": ("explain xm0 198.51.100.1", "DESTINATION"),
    "too much": ("explain xm0 198.51.100.1 198.51.100.2 tcp", "tcp"),
    "an unknown link": ("explain nosuch 198.51.100.1 198.51.100.2", "name"),
    "no xmasq link": ("explain eth0 198.51.100.1 198.51.100.2", "name"),
    "source no address": ("explain xm0 here 198.51.100.2", "source"),
    "destination no address": ("explain xm0 198.51.100.1 198.51.100", "destination"),
}


@pytest.fixture(scope="module")
def shared():
    with Lab() as lab:
        host = lab.host()
        xmasq(host, "link", "add", "xm0", "id", "42", "local", host.address)
        yield host


@pytest.mark.parametrize("case", BAD)
def test_bad_input(shared, case):
    text, argument = BAD[case]
    result = xmasq(shared, *text.split(), check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"xmasq: {argument}: ")
    assert result.stderr.count("\n") == 1
