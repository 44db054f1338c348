# SPDX-License-Identifier: Apache-2.0
"""The demo's parts that need no network: its screen, its words, and what makes it fail."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from scapy.layers.inet import IP, TCP

from tests.demo.__main__ import main
from tests.demo.checks import all_checks
from tests.demo.measure import Fit
from tests.demo.story import Share
from tests.demo.terminal import WIDTH, Screen, bar


class Terminal(io.TextIOWrapper):
    """A stream in memory that says that it is a terminal, or not."""

    def __init__(self, encoding: str, tty: bool) -> None:
        super().__init__(io.BytesIO(), encoding)
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "LC_ALL"):
        monkeypatch.delenv(name, raising=False)


def shown(encoding: str = "utf-8", *, tty: bool = False) -> str:
    out, err = Terminal(encoding, tty), Terminal(encoding, False)
    screen = Screen(out, err)
    screen.section("A", "b")
    screen.line(f"{screen.paint('✓', 'good')} ├──► {bar(1, 2, 5)} ")
    return out.text()


def test_colours_are_for_terminals_only(monkeypatch):
    assert "\033[" not in shown()
    assert "\033[32m✓\033[0m" in shown(tty=True)
    monkeypatch.setenv("NO_COLOR", "")
    assert "\033[" not in shown(tty=True)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\033[" not in shown(tty=True)


def test_ascii_has_the_same_columns(monkeypatch):
    fine, plain = shown(), shown("ascii")
    assert plain.splitlines()[-1] == "+ +--> ###"
    assert [len(line) for line in plain.splitlines()] == [len(line) for line in fine.splitlines()]
    monkeypatch.setenv("LC_ALL", "C")
    assert shown() == plain


def test_a_headline_is_as_wide_as_the_report():
    assert [len(line) for line in shown().splitlines()[:2]] == [0, WIDTH]


def test_progress_stays_out_of_the_report():
    out, err = Terminal("utf-8", False), Terminal("utf-8", True)
    screen = Screen(out, err)
    screen.progress("working", "1 of 2")
    screen.progress("working", "2 of 2")
    screen.line("result")
    assert out.text() == "result\n"
    assert err.text() == "  working  1 of 2\r\033[K  working  2 of 2\r\033[K"


def test_progress_without_a_terminal_is_one_line_for_each_step():
    err = Terminal("utf-8", False)
    screen = Screen(Terminal("utf-8", False), err)
    screen.progress("working", "1 of 2")
    screen.progress("working", "2 of 2")
    screen.progress("resting")
    assert err.text() == "demo: working\ndemo: resting\n"


@pytest.mark.parametrize(
    ("value", "full", "drawn"),
    [(0, 8, ""), (8, 8, "█" * 4), (4, 8, "██"), (5, 8, "██▌"), (0.3, 8, "▏"), (1, 0, "")],
)
def test_bars(value, full, drawn):
    assert bar(value, full, 4) == drawn


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rounds"], "demo: --rounds needs one number from 1 to 100\n"),
        (["--rounds", "0"], "demo: --rounds needs one number from 1 to 100\n"),
        (["--rounds", "101"], "demo: --rounds needs one number from 1 to 100\n"),
        (["--rounds", "1", "2"], "demo: --rounds needs one number from 1 to 100\n"),
        (["often"], 'demo: "often" is unknown; allowed is --rounds N\n'),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, said, capsys):
    assert main(words) == 2
    assert capsys.readouterr() == ("", said)


def packet(**changes: int | str) -> IP:
    """What A sends, or something with these fields of IPv4 in its place, checksums included."""
    fields = {"src": "198.51.100.18", "dst": "198.51.100.34", "id": 7, "flags": "DF", "ttl": 64} | changes
    return IP(bytes(IP(**fields) / TCP(sport=1, dport=2, seq=3) / b"data"))


def failures(**changes: object) -> list[str]:
    story = {
        "counted": Share(999, 1000),
        "captured": Share(999, 1000),
        "sent": packet(),
        "wire": packet(src="192.0.2.1", dst="192.0.2.2", id=64, ttl=63, tos=12),
        "received": packet(ttl=62, id=0),
    }
    fit = Fit(mtu=1500, big=True, added=0, pings=10, whole=9, in_pieces=10)
    story_now = SimpleNamespace(**(story | changes))
    return [c.failure for c in all_checks(story_now, {"xmasq": changes.get("fit", fit)}) if not c.passed]


def test_all_is_well():
    assert failures() == []


def test_a_low_share_fails():
    (said,) = failures(counted=Share(98, 100), captured=Share(98, 100))
    assert said == "only 98.00 % of the packets were encoded; 99 % were expected"


def test_a_capture_that_tells_another_tale_than_the_counters_fails():
    (said,) = failures(captured=Share(998, 1000))
    assert said == "the hosts count 999 of 1000 packets as encoded, the capture 998 of 1000"


@pytest.mark.parametrize(
    ("place", "damage", "said"),
    [
        ("wire", {"chksum": 1}, "wrong checksum"),
        ("received", {"tos": 4}, "another packet"),
        ("received", {"src": "198.51.100.19"}, "another packet"),
    ],
)
def test_a_wrong_header_fails(place, damage, said):
    good = {"wire": {"src": "192.0.2.1", "dst": "192.0.2.2"}, "received": {}}[place]
    assert [said in one for one in failures(**{place: packet(**(good | damage))})] == [True]


def test_changed_data_fails():
    wrong = packet(src="192.0.2.1", dst="192.0.2.2")
    wrong[TCP].seq = 4
    del wrong[TCP].chksum
    (said,) = failures(wire=IP(bytes(wrong)))
    assert said == "an encoded packet differs from what A sent behind the IPv4 header"


@pytest.mark.parametrize("wrong", [{"big": False}, {"whole": 0}, {"added": 50}])
def test_a_smaller_mtu_fails(wrong):
    fit = {"mtu": 1500, "big": True, "added": 0, "pings": 10, "whole": 9, "in_pieces": 0} | wrong
    assert failures(fit=Fit(**fit)) == ["ping -M do -s 1472 does not get through xmasq in one piece"]
