# SPDX-License-Identifier: Apache-2.0
"""The runner of the tests on other kernels, as far as it needs no virtual machine."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels import __main__ as command
from tests.kernels import fetch, job, table
from tests.kernels.suites import SERIES, KernelsError, NoKernelError

CASE = '<testcase classname="{}" name="{}">{}</testcase>'


def report(path: Path, *cases: tuple[str, str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<testsuites><testsuite>{''.join(CASE.format(*case) for case in cases)}</testsuite></testsuites>"
    )


def test_the_table_has_the_last_result_of_each_test_and_why_some_were_skipped(tmp_path: Path) -> None:
    netkit = ("tests.kernels.guest.test_devices", "test_containers_on_netkit")
    report(
        tmp_path / "5.10.0-46-amd64" / "1-.xml",
        ("tests.unit.test_keys", "test_a", ""),
        ("tests.unit.test_keys", "test_b", '<failure message="x"/>'),
        (*netkit, '<skipped message="this kernel has no netkit"/>'),
    )
    report(
        tmp_path / "6.12.1" / "2-.xml",
        ("tests.unit.test_keys", "test_a", '<failure message="x"/>'),
        (*netkit, ""),
    )
    report(tmp_path / "6.12.1" / "3-.xml", ("tests.unit.test_keys", "test_a", ""))
    cells = table.summary(table.read(tmp_path))
    text = table.render(cells)
    assert table.parse(text) == cells
    lines = text.splitlines()
    assert lines[0] == "| | 5.10.0-46-amd64 | 6.12.1 |"
    row = "| Unit tests: verdicts of the programs on single packets, input, output "
    assert f"{row}| 1 passed, **1 failed** | 1 passed |" in lines
    assert "| Containers on netkit | none <sup>1</sup> | 1 passed |" in lines
    assert "| Full preemption | not run | not run |" in lines
    assert lines[-1] == "1. this kernel has no netkit"


def test_what_no_report_is_about_keeps_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\n{table.END}\nafter\n")
    monkeypatch.setattr(table, "PAGE", page)
    monkeypatch.setattr(table, "REPORTS", tmp_path / "reports")
    there = {"tests.unit.test_keys::test_a", "tests.e2e.test_link::test_b", "tests.e2e.test_capture::test_c"}
    monkeypatch.setattr(table, "present", lambda: there)
    no_tcx = '<skipped message="no tcx"/>'
    report(
        tmp_path / "reports" / "5.10.1" / "1-.xml",
        ("tests.unit.test_keys", "test_a", '<skipped message="no BTF"/>'),
        ("tests.e2e.test_capture", "test_c", no_tcx),
    )
    assert table.main() == 0
    (tmp_path / "reports" / "5.10.1" / "1-.xml").unlink()
    report(
        tmp_path / "reports" / "5.10.1" / "2-.xml",
        ("tests.unit.test_keys", "test_a", ""),
        ("tests.e2e.test_link", "test_b", no_tcx),
    )
    report(tmp_path / "reports" / "6.12.1" / "2-.xml", ("tests.e2e.test_link", "test_b", ""))
    assert table.main() == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert table.parse(text) == {
        ("Unit tests: verdicts of the programs on single packets, input, output", "5.10.1"): table.Cell(
            "1 passed"
        ),
        ("Capture", "5.10.1"): table.Cell("none", ("no tcx",)),
        ("Links: traffic, negotiation, renewal, deletion", "5.10.1"): table.Cell("none", ("no tcx",)),
        ("Links: traffic, negotiation, renewal, deletion", "6.12.1"): table.Cell("1 passed"),
    }
    assert text.count("no tcx") == 1
    assert "no BTF" not in text


def test_results_of_tests_that_are_gone_do_not_count(tmp_path: Path) -> None:
    cases = [("tests.unit.test_keys", "test_a[1]", ""), ("tests.unit.test_keys", "test_a[2]", "")]
    report(tmp_path / "6.12.1" / "1-.xml", *cases)
    pair = ("tests.kernels.guest.pair.test_pair", "test_ping", "")
    report(tmp_path / "5.10.1,6.12.1" / "2-e1000e.xml", pair)
    found = table.read(tmp_path, {"tests.unit.test_keys::test_a[2]"})
    ping = "tests.kernels.guest.pair.test_pair::test_pinge1000e"
    assert set(found["6.12.1"]) == {"tests.unit.test_keys::test_a[2]", ping}
    assert set(found["5.10.1"]) == {ping}


def test_two_runs_of_one_kernel_have_a_directory_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(job, "RESULTS", tmp_path / "results")
    first = job.directory("5.10")
    (first / "junit.xml").touch()
    second = job.directory("5.10")
    assert (first.name, second.name) == ("5.10", "5.10-2")
    assert (first / "junit.xml").exists()


def test_the_job_takes_paths_or_runs_all_suites_and_quotes() -> None:
    line = job.script(["-k", "a or b"], jobs=2, slowness=10).splitlines()[-1]
    words = shlex.split(line)
    assert words[words.index("-k") + 1] == "a or b"
    assert set(job.SUITES) <= set(words)
    line = job.script(["tests/unit/test_keys.py::test_a"], jobs=2, slowness=10).splitlines()[-1]
    assert not set(job.SUITES) & set(shlex.split(line))


def test_of_a_guest_that_hangs_is_known_how_far_it_came(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(job, "REPORTS", tmp_path / "reports")
    assert job.unfinished("5.10.1", tmp_path) == ""
    (tmp_path / "test_it.py").write_text(
        "import os\n\ndef test_bad():\n    assert 1 == 2\n\ndef test_good():\n    pass\n\n"
        "def test_hangs():\n    os._exit(9)\n"
    )
    words = ["-p", "tests.kernels.guest.progress", "-p", "no:randomly", "--junitxml=junit.xml", "test_it.py"]
    quick = {"XMASQ_GUEST_REPORT_SECONDS": "0", "XMASQ_GUEST_RUNNING": str(tmp_path / "running")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=tmp_path,
        env=os.environ | quick | {"PYTHONPATH": str(job.ROOT)},
        capture_output=True,
    )
    assert done.returncode == 9
    assert job.unfinished("5.10.1", tmp_path).splitlines() == [
        "",
        "  in test_it.py::test_hangs",
        "  failed before: test_it::test_bad: assert 1 == 2",
        "  passed before: 1, at least",
    ]
    (kept,) = (tmp_path / "reports" / "5.10.1").iterdir()
    assert "test_good" in kept.read_text()


def test_an_unknown_kernel_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tests.kernels", "--kernel", "4.9"])
    assert command.main() == 2
    assert capsys.readouterr().err.splitlines() == [
        "kernels: kernel '4.9': 5.10, 6.1, 6.12, newest, pair are allowed"
    ]


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([0, 0], 0), ([0, 3], 3), ([3, 1], 1), ([1, 2], 2), ([3, -9], -9)],
)
def test_a_kernel_that_is_not_to_be_had_hides_no_failure(codes: list[int], expected: int) -> None:
    assert command.worst(codes) == command.worst(reversed(codes)) == expected


def test_without_the_archive_the_last_kernel_is_good_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(*_: object) -> None:
        raise KernelsError("no route to the archive")

    monkeypatch.setattr(fetch, "CACHE", tmp_path)
    monkeypatch.setattr(fetch, "_Apt", unreachable)
    series = SERIES[0]
    with pytest.raises(NoKernelError, match="no route"):
        fetch.fetch(series)
    root = tmp_path / series.name / "5.10.1-1"
    (root / "lib" / "modules" / "5.10.0-1").mkdir(parents=True)
    (root / ".complete").touch()
    assert fetch.fetch(series).release == "5.10.0-1"
