# SPDX-License-Identifier: Apache-2.0
"""The tests' own room in the machine's queues: taken, shared and given back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import backlog
from tests.lab.backlog import room


@pytest.fixture
def setting(tmp_path, monkeypatch) -> Path:
    setting = tmp_path / "netdev_max_backlog"
    setting.write_text("1000\n")
    monkeypatch.setattr(backlog, "_SETTING", setting)
    monkeypatch.setattr(backlog, "_BEFORE", tmp_path / "before")
    return setting


def test_room_is_given_back(setting):
    with room():
        assert int(setting.read_text()) == 100_000
    assert setting.read_text() == "1000\n"


def test_after_a_failure_too(setting):
    with pytest.raises(ZeroDivisionError), room():
        raise ZeroDivisionError
    assert setting.read_text() == "1000\n"


def test_the_last_one_gives_it_back(setting):
    one, other = room(), room()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert int(setting.read_text()) == 100_000
    other.__exit__(None, None, None)
    assert setting.read_text() == "1000\n"


def test_what_a_killed_process_left_is_given_back(setting):
    (setting.parent / "before").write_text("1000\n")
    setting.write_text("100000\n")
    with room():
        pass
    assert setting.read_text() == "1000\n"


def test_a_machine_with_more_keeps_it(setting):
    setting.write_text("200000\n")
    with room():
        assert setting.read_text() == "200000\n"
    assert setting.read_text() == "200000\n"


def test_a_change_in_the_meantime_stays(setting):
    with room():
        setting.write_text("5000\n")
    assert setting.read_text() == "5000\n"


def test_where_it_cannot_be_set_the_tests_go_on(setting, monkeypatch):
    monkeypatch.setattr(backlog, "_SETTING", setting.parent / "none")
    with room():
        pass
    monkeypatch.setattr(backlog, "_BEFORE", setting.parent / "none" / "before")
    with room():
        pass
