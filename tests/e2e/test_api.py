# SPDX-License-Identifier: Apache-2.0
"""The Python API beside other users of the same libraries in one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import xmasq_link
from tests.lab import ROOT, Lab, patience
from xmasq_link import _hooks, create_link

pytestmark = pytest.mark.e2e

CODE = """
import sys
from pyroute2 import IPRoute
from pyroute2.netns import setns
setns(sys.argv[1])
with IPRoute() as ipr:
    index = ipr.link_lookup(ifname="xm0")[0]
    assert list(ipr.get_filters(index=index, parent=0xFFFFFFF3))
import xmasq_link
print(*(link.name for link in xmasq_link.links()))
"""


def test_links_are_found_after_others_have_read_filters(monkeypatch):
    """pyroute2 compiles a class's attributes at its first use: ours must not inherit that.

    It matters where the programs are filters, as on kernels without tcx.
    """
    monkeypatch.setattr(_hooks, "has_tcx", lambda: False)
    with Lab() as lab:
        (host,) = lab.hosts(1)
        create_link("xm0", vni=42, local=host.address, netns=host.name)
        done = subprocess.run(
            [sys.executable, "-c", CODE, host.name],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=patience(30),
        )
        assert (done.stdout, done.stderr) == ("xm0\n", "")


BESIDE_PYROUTE2 = """
import os, sys
from pyroute2 import IPRoute, NetNS
import xmasq_link
here = os.stat("/proc/thread-self/ns/net").st_ino
with IPRoute(netns=sys.argv[1]) as ipr, NetNS(sys.argv[1], flags=0) as ns, IPRoute() as own:
    made = xmasq_link.create_link("xm0", vni=42, local=sys.argv[2], netns=ipr)
    assert [link.name for link in xmasq_link.links(netns=ns)] == ["xm0"]
    assert ipr.link("get", ifname="xm0")[0]["index"] == made.index
    assert xmasq_link.links(netns=own) == xmasq_link.links()
    xmasq_link.delete_link("xm0", netns=ns)
    assert not ipr.link_lookup(ifname="xm0")
assert os.stat("/proc/thread-self/ns/net").st_ino == here
"""


def python(code: str, *args: str) -> None:
    """In a process of its own: for each socket elsewhere pyroute2 forks, which the laboratory's signal
    handlers do not expect."""
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=patience(30),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_namespace_is_named_in_many_ways():
    """For one call, without moving the calling thread."""
    with Lab() as lab:
        (host,) = lab.hosts(1)
        python(BESIDE_PYROUTE2, host.name, host.address)
        here = os.stat("/proc/thread-self/ns/net").st_ino
        path = Path("/run/netns", host.name)
        made = xmasq_link.create_link("xm0", vni=42, local=host.address, netns=host.name)
        assert (made.name, made.vni) == ("xm0", 42)
        fd = os.open(path, os.O_RDONLY)
        try:
            for where in (host.name, path, str(path), fd):
                assert [link.name for link in xmasq_link.links(netns=where)] == ["xm0"]
                assert list(xmasq_link.flows(netns=where)) == []
        finally:
            os.close(fd)
        with xmasq_link.netns(path):
            assert [link.name for link in xmasq_link.links()] == ["xm0"]
            with pytest.raises(xmasq_link.InputError, match=r"^name: "):
                xmasq_link.delete_link("xm1")
        xmasq_link.delete_link("xm0", netns=path)
        assert xmasq_link.links(netns=path) == []
        assert os.stat("/proc/thread-self/ns/net").st_ino == here


@pytest.mark.parametrize("where", ["xmq-no-such", "/nonexistent", 9999, 3.5, "a\0b", Path("nope")])
def test_no_such_namespace(where):
    with pytest.raises(xmasq_link.InputError) as raised:
        xmasq_link.links(netns=where)
    assert raised.value.argument == "netns"
    with pytest.raises(xmasq_link.InputError, match=r"^netns: "):
        next(xmasq_link.flows(netns=where))


def test_links_one_by_one():
    """From another namespace all the same, and more than fit into one of the kernel's messages."""
    with Lab() as lab:
        (host,) = lab.hosts(1)
        for number in range(1, 41):
            create_link(f"xm{number}", vni=number, local=host.address, netns=host.name)
        rows = xmasq_link.iter_links(netns=host.name)
        first = next(rows)  # in that namespace; behind it in this one
        found = [first, *rows]
        assert sorted(found, key=lambda link: link.index) == xmasq_link.links(netns=host.name)
        assert len(found) == 40
        assert list(xmasq_link.iter_links("xm7", netns=host.name)) == xmasq_link.links("xm7", netns=host.name)
        with pytest.raises(xmasq_link.InputError):
            next(xmasq_link.iter_links("xm99", netns=host.name))
