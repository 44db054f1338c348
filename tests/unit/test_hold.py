# SPDX-License-Identifier: Apache-2.0
"""Hold-down after a start: only where it cannot be proven unnecessary."""

from __future__ import annotations

from pathlib import Path

import pytest

from xmasq_link import _hold

MS = 1_000_000
LONGEST = (_hold.LEASE_MAX_MS + _hold.guard_ms(_hold.LEASE_MAX_MS)) * MS


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(_hold, "RUN", tmp_path / "run")
    monkeypatch.setattr(_hold, "cookie", lambda: "c1")
    return tmp_path / "run"


def at(monkeypatch: pytest.MonkeyPatch, ns: int) -> int:
    monkeypatch.setattr(_hold, "now_ns", lambda: ns)
    return ns


def test_soon_after_boot_an_earlier_boots_keys_may_live(monkeypatch):
    now = at(monkeypatch, 5_000 * MS)
    hold = _hold.read()
    assert hold.rx_ns == LONGEST > now
    assert hold.tx_ns == _hold.guard_ms(_hold.LEASE_MAX_MS) * MS > now


def test_uptime_proves_it_unnecessary(monkeypatch):
    now = at(monkeypatch, LONGEST + 1)
    assert _hold.read().rx_ns < now
    assert _hold.read().tx_ns < now


def test_after_a_removal_the_rest_of_lease_and_guard(monkeypatch):
    at(monkeypatch, 10**12)
    _hold.live(10_000)
    gone = at(monkeypatch, 2 * 10**12)
    _hold.removed()
    at(monkeypatch, gone + 1_000 * MS)
    assert _hold.read() == _hold.Hold(gone + 15_000 * MS, gone + 5_000 * MS)


def test_a_datapath_that_went_without_telling_counts_from_now(monkeypatch):
    at(monkeypatch, 10**12)
    _hold.live(1_000)
    now = at(monkeypatch, 2 * 10**12)
    assert _hold.read() == _hold.Hold(now + 3_000 * MS, now + 2_000 * MS)


def test_the_longest_lease_that_was_in_use_counts(monkeypatch):
    now = at(monkeypatch, 10**12)
    _hold.live(20_000)
    _hold.live(1_000)
    assert _hold.read().rx_ns == now + 30_000 * MS


@pytest.mark.parametrize("text", ["", "{}", "[]", "{", '{"lease_ms": "x"}', '{"lease_ms": null}'])
def test_a_damaged_record_is_taken_for_the_worst(monkeypatch, run, text):
    now = at(monkeypatch, 10**12)
    run.mkdir()
    (run / "c1").write_text(text)
    assert _hold.read().rx_ns == now + LONGEST


def test_records_are_forgotten_when_they_say_nothing_any_more(monkeypatch, run):
    at(monkeypatch, 10**12)
    _hold.live(10_000)
    _hold.removed()
    (run / "c1").rename(run / "c0")
    at(monkeypatch, 10**12 + LONGEST - 1)
    _hold.live(10_000)
    _hold.removed()
    assert {p.name for p in run.iterdir()} == {"c0", "c1"}
    at(monkeypatch, 10**12 + LONGEST + 1)
    _hold.removed()
    assert {p.name for p in run.iterdir()} == {"c1"}


@pytest.mark.parametrize(
    ("lease", "guard"), [(1_000, 2_000), (4_000, 2_000), (10_000, 5_000), (60_000, 30_000)]
)
def test_guard(lease, guard):
    assert _hold.guard_ms(lease) == guard
