# SPDX-License-Identifier: Apache-2.0
"""Devices that are made links as they appear, whatever happens to them and to the underlay."""

from __future__ import annotations

import json
import queue
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import Host, Lab, routed_overlay, xmasq, xmasq_json

from .observe import negotiate, programs, stats, strip, until

pytestmark = pytest.mark.e2e

DEVICE = "type vxlan id 1 local 192.0.2.1 dstport 8472 nolearning"


class Watch:
    """`xmasq attach --watch`, and what it says."""

    def __init__(self, host: Host, *words: str) -> None:
        command = [sys.executable, "-m", "xmasq_link", "-j", "attach", "--watch", *words]
        self.process = host.popen(command)
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line)

    def expect(self, device: str, what: str) -> str:
        """Waits for its next line; returns the reason."""
        said = json.loads(self._lines.get(timeout=20))
        assert (said["device"], said["what"]) == (device, what), said
        return str(said["text"])

    def end(self, signum: int = signal.SIGTERM) -> str:
        """Stops it as systemd does; returns what it still said."""
        self.process.send_signal(signum)
        assert self.process.wait(20) == 0
        self._reader.join(5)
        assert self.process.stderr
        assert self.process.stderr.read() == ""
        return "".join(self._lines.get() for _ in range(self._lines.qsize()))


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab() as lab:
        yield lab.host()


def attached(host: Host) -> dict[str, Any]:
    """The attached links: their names, with their underlays."""
    links = [(link["ifname"], link["linkinfo"]["info_data"]) for link in xmasq_json(host, "link", "show")]
    return {name: data["dev"] for name, data in links if data["attached"]}


def test_devices_that_come_and_go(host):
    host.ip(f"link add flannel.1 {DEVICE}", "link add other type vxlan id 9 local 192.0.2.1 dstport 8472")
    watch = Watch(host, "flannel.*,vxlan.calico")
    watch.expect("flannel.1", "attached")
    assert attached(host) == {"flannel.1": "eth0"}
    for _ in range(3):  # as flanneld does when its settings have changed
        host.ip("link del flannel.1", f"link add flannel.1 {DEVICE}", "link set flannel.1 up")
        watch.expect("flannel.1", "gone")
        watch.expect("flannel.1", "attached")
    host.ip("link set flannel.1 down", "link set flannel.1 up", "link set eth0 down", "link set eth0 up")
    host.ip("link add vxlan.calico type vxlan id 4096 local 192.0.2.1 dev eth0 dstport 8472")
    watch.expect("vxlan.calico", "attached")
    assert watch.end() == ""
    assert attached(host) == {"flannel.1": "eth0", "vxlan.calico": "eth0"}
    # A second one finds all in order, and sees to what comes.
    watch = Watch(host, "flannel.*", "--detach")
    host.ip("link add flannel.2 type vxlan id 2 local 192.0.2.1 dstport 8472")
    watch.expect("flannel.2", "attached")
    host.ip("link del flannel.2")
    watch.expect("flannel.2", "gone")
    host.ip("link del flannel.1")
    watch.expect("flannel.1", "gone")
    host.ip(f"link add flannel.1 {DEVICE}")
    watch.expect("flannel.1", "attached")
    assert json.loads(watch.end(signal.SIGINT))["what"] == "detached"
    assert attached(host) == {"vxlan.calico": "eth0"}


def test_the_underlay_changes(host):
    host.ip(f"link add flannel.1 {DEVICE}")
    watch = Watch(host, "flannel.1")
    watch.expect("flannel.1", "attached")
    # The address moves to another device, as when a bond or bridge is made of the NIC.
    host.plug("eth1")
    host.ip("addr del 192.0.2.1/24 dev eth0")
    assert "192.0.2.1" in watch.expect("flannel.1", "refused")
    host.ip("addr add 192.0.2.1/24 dev eth1")
    watch.expect("flannel.1", "moved")
    assert attached(host) == {"flannel.1": "eth1"}
    assert programs(host, "eth0") == {}
    # The device's own address, and the underlay's MTU: nothing is said, but they are known.
    host.ip("link set flannel.1 address 02:00:00:00:00:99", "link set eth1 mtu 1400")

    def known() -> bool:
        from xmasq_link._attach import state_of

        return state_of("flannel.1", netns=host.name) == "attached"

    until(known, "the datapath knows the new address and MTU")
    # A NIC that is taken out and comes back.
    host.ip("link del eth1")
    watch.expect("flannel.1", "refused")
    host.plug("eth1", "192.0.2.1/24")
    watch.expect("flannel.1", "attached")
    watch.end()


def test_hooks_that_others_take_off(host):
    host.ip(f"link add flannel.1 {DEVICE}")
    watch = Watch(host, "flannel.1")
    watch.expect("flannel.1", "attached")

    strip(host, "eth0")
    host.ip("link set lo up", "link set lo down")  # it looks whenever anything changes
    watch.expect("flannel.1", "repaired")
    assert set(programs(host, "eth0")) == {"xmasq_ingress", "xmasq_egress"}
    watch.end()


def test_a_device_that_cannot_be_a_link_yet(host):
    host.ip("link add flannel.1 type vxlan id 1 local 192.0.2.50 dstport 8472 nolearning")
    watch = Watch(host, "flannel.1", "lease", "5s")
    assert watch.expect("flannel.1", "refused").startswith("local: 192.0.2.50 is not an address of this host")
    host.ip("addr add 192.0.2.50/24 dev eth0")
    watch.expect("flannel.1", "attached")
    assert xmasq_json(host, "link", "show")[0]["linkinfo"]["info_data"]["lease"] == 5
    watch.end()


def test_traffic_through_a_watched_network(lab):
    overlay = routed_overlay(lab.hosts(2), kind="vxlan", link="flannel1")
    watches = [Watch(host, "flannel*") for host in overlay.hosts]
    for watch in watches:
        watch.expect("flannel1", "attached")
    a, b = overlay.containers
    negotiate(a, b, "flannel1")
    assert stats(overlay.hosts[0], "flannel1")["accept_tx"] > 0
    for watch in watches:
        watch.end()


@pytest.mark.parametrize(
    ("words", "argument"),
    [
        ("attach --watch", "--watch"),
        ("attach --watch ''", "--watch"),
        ("attach --watch a,,b", "--watch"),
        ("attach --watch 'a b'", "--watch"),
        ("attach --watch a/b", "--watch"),
        ("attach --watch a --watch b", "--watch"),
        ("attach xm0 --watch a", "name"),
        ("attach xm0 --detach", "--detach"),
        ("attach --watch a lease 0", "lease"),
        ("attach --watch a mark 4", "mark"),
    ],
)
def test_bad_input(host, words, argument):
    result = xmasq(host, *shlex.split(words), check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"xmasq: {argument}: ")
    assert result.stderr.count("\n") == 1


def test_the_unit_runs_what_there_is():
    """docs/deploy/xmasq-attach@.service: its command is one that exists, with the words of its comments."""
    from tests.lab import ROOT
    from xmasq_link._cli.attach import GRAMMAR
    from xmasq_link._cli.words import parse

    text = (ROOT / "docs/deploy/xmasq-attach@.service").read_text()
    (command,) = [line.split("=", 1)[1] for line in text.splitlines() if line.startswith("ExecStart=")]
    program, name, *words = command.split()
    assert (program, name) == ("/usr/bin/xmasq", "attach")
    (example,) = [line.split('"')[3] for line in text.splitlines() if 'XMASQ_OPTIONS="' in line]
    rest = [word for word in words if word != "$XMASQ_OPTIONS"] + example.split()
    assert parse(rest, GRAMMAR, "attach")["pattern"] == "%I"
