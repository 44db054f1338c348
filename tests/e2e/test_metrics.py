# SPDX-License-Identifier: Apache-2.0
"""xmasq metrics: what Prometheus gets."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

import xmasq_link
from tests.e2e.observe import negotiate, stats
from tests.lab import ROOT, Lab, Overlay, patience, routed_overlay, xmasq, xmasq_json

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def overlay() -> Iterator[Overlay]:
    with Lab() as lab:
        overlay = routed_overlay(lab.hosts(2))
        negotiate(*overlay.containers)
        yield overlay


def values(text: str) -> dict[tuple[str, ...], float]:
    """Values by name and labels, as Prometheus' own parser reads them."""
    return {
        (sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_page(overlay):
    a, b = overlay.containers
    before = stats(a.host)
    found = values(xmasq(a.host, "metrics").stdout)
    after = stats(a.host)
    key = ("xmasq_packets_total", "direction=tx", "link=xm0", "path=fast")
    assert before["encoded"] <= found[key] <= after["encoded"]
    key = ("xmasq_fallback_packets_total", "link=xm0", "reason=no_grant")
    assert before["fb_no_grant"] <= found[key] <= after["fb_no_grant"]
    assert found["xmasq_link_info", "dev=eth0", "link=xm0", f"local={a.host.address}", "vni=42"] == 1
    assert found["xmasq_flows", "link=xm0", f"peer={b.host.address}"] >= 1
    assert found["xmasq_keys", "link=xm0", f"peer={b.host.address}", "state=granted"] >= 1
    assert 0 <= found["xmasq_peer_heard_seconds", f"local={a.host.address}", f"peer={b.host.address}"] < 60
    assert ("xmasq_events_total", "event=sanitised", "link=") in found
    assert all(one["type"] in ("counter", "gauge") for one in xmasq_json(a.host, "metrics"))


def test_a_host_without_links():
    with Lab() as lab:
        assert values(xmasq(lab.host(), "metrics").stdout) == {}


def test_over_http(overlay):
    host = overlay.hosts[0]
    with subprocess.Popen(
        [sys.executable, "-m", "xmasq_link", "-n", host.name, "metrics", "--listen", "127.0.0.1:9469"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr.readline() == "listening on 127.0.0.1:9469\n"

        def get() -> str:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open("http://127.0.0.1:9469/metrics", timeout=patience(10)) as answer:
                return answer.read().decode()

        found = values(host.inside(get))
        page = values(xmasq(host, "metrics").stdout)
        assert set(found) == set(page)
        assert found["xmasq_link_up", "link=xm0"] == 1
        taken = xmasq(host, "metrics", "--listen", "127.0.0.1:9469", check=False)
        assert (taken.returncode, taken.stdout) == (1, "")
        assert taken.stderr == "xmasq: cannot listen on 127.0.0.1:9469: Address already in use\n"
        process.terminate()
        assert process.wait(20) == 143
        assert process.stderr.read() == ""


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(
        xmasq_link.XmasqError, match=r"prometheus-client is missing: pip install xmasq\[metrics\]"
    ):
        xmasq_link.serve_metrics("127.0.0.1", 9469)


@pytest.mark.parametrize(
    ("words", "argument"),
    [
        ("now", "now"),
        ("--listen", "--listen"),
        ("--listen here", "--listen"),
        ("--listen host:9469", "--listen"),
        ("--listen 127.0.0.1:0", "--listen"),
        ("--listen 127.0.0.1:65536", "--listen"),
        ("--listen :1 --listen :2", "--listen"),
    ],
)
def test_bad_input(words, argument):
    result = xmasq(None, "metrics", *words.split(), check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"xmasq: {argument}: ")
    assert result.stderr.count("\n") == 1
