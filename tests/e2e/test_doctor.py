# SPDX-License-Identifier: Apache-2.0
"""xmasq doctor: healthy where all is well, and names what is not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kmod_ebpf import loader, summed
from tests.e2e.observe import negotiate
from tests.lab import ROOT, Host, Overlay, routed_overlay, xmasq, xmasq_json

pytestmark = pytest.mark.e2e


@pytest.fixture
def overlay(lab) -> Overlay:
    overlay = routed_overlay(lab.hosts(2))
    negotiate(*overlay.containers)
    return overlay


def wrong(host: Host) -> set[tuple[str, str]]:
    """About what there are warnings and faults, with the first word of each."""
    result = xmasq(host, "doctor", check=False)
    levels = {line.split()[0] for line in result.stdout.splitlines()}
    assert result.returncode == (1 if levels & {"warning", "fault"} else 0)
    assert result.stderr == ""
    found = xmasq_json(host, "doctor") if result.returncode == 0 else None
    if found is None:
        import json

        found = json.loads(xmasq(host, "-j", "doctor", check=False).stdout)
    return {(f["about"], f["text"]) for f in found if f["level"] in ("warning", "fault")}


def test_a_healthy_host(overlay):
    assert wrong(overlay.hosts[0]) == set()


def test_it_says_how_checksums_are_written(overlay, monkeypatch):
    """Told to do without the faster way, it is none the less healthy."""
    host = overlay.hosts[0]

    def found() -> str:
        (one,) = [f["text"] for f in xmasq_json(host, "doctor") if f["about"] == "checksums"]
        return str(one)

    assert ("by a helper" in found()) == (summed.field() is None)
    monkeypatch.setenv("XMASQ_IP_SUMMED", "0")
    assert "by a helper" in found()


def test_rules_that_write_headers(overlay):
    host = overlay.hosts[0]
    host.run("nft add table ip filter")
    host.run(["nft", "add", "chain", "ip", "filter", "out", "{ type filter hook postrouting priority 0; }"])
    host.run("nft add rule ip filter out ip dscp set cs1")
    host.run(
        ["nft", "add", "chain", "ip", "filter", "in", "{ type filter hook input priority 0; policy drop; }"]
    )
    host.run("nft add rule ip filter in accept")
    assert [about for about, _ in wrong(host)] == ["firewall"]
    assert "accept UDP port 4789" in xmasq(host, "doctor", check=False).stdout


def test_a_link_that_is_not_at_its_best(overlay):
    host = overlay.hosts[0]
    xmasq(host, "link", "set", "xm0", "fastpath", "off")
    host.sysctl({"ipv4/conf/xm0/rp_filter": 1})
    host.ip("link set eth0 mtu 1400")
    assert {about for about, _ in wrong(host)} == {"xm0"}
    texts = " ".join(text for _, text in wrong(host))
    for word in ("fast path is off", "reverse path", "its MTU is 1500, that of eth0 only 1400"):
        assert word in texts


def test_a_foreign_program_in_front(overlay):
    """One that ends the chain would keep packets from ours."""
    from pyroute2 import IPRoute

    from kmod_ebpf import bpf
    from xmasq_link._hooks import EGRESS, attach

    host = overlay.hosts[0]
    insns = b"\xb4\x00\x00\x00\xff\xff\xff\xff" + b"\x95" + bytes(7)  # return TC_ACT_UNSPEC
    fd = bpf.prog_load("foreign", insns)

    def put() -> None:
        with IPRoute() as ipr:
            (index,) = ipr.link_lookup(ifname="eth0")
            attach(ipr, index, EGRESS, "foreign", fd)

    try:
        host.inside(put)
        assert wrong(host) == {("xm0", '"foreign" runs before xmasq_egress on eth0')}
    finally:
        os.close(fd)


def test_without_rights(lab):
    """Run by nobody, it says what it could not look at, and has no traceback."""
    code = (
        "import os, sys\nimport xmasq_link, xmasq_link._doctor\n"
        "from xmasq_link._cli import doctor\nfrom xmasq_link._cli.main import main\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\nsys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")
    assert "this process lacks CAP_NET_ADMIN" in done.stdout


def test_a_kernel_that_refuses(monkeypatch):
    import xmasq_link

    def load(*_: object) -> None:
        raise loader.LoadError("the kernel refuses the program x", missing="bpf_redirect_neigh, Linux 5.10")

    monkeypatch.setattr(loader, "load", load)
    (found,) = [f for f in xmasq_link.diagnose() if f.about == "datapath"]
    assert (found.level, found.hint) == ("fault", "this kernel lacks bpf_redirect_neigh, Linux 5.10")


def test_bad_input(lab):
    result = xmasq(None, "doctor", "now", check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("xmasq: now: ")
