# SPDX-License-Identifier: Apache-2.0
"""What the documents point at is there: files, and tests by their names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
#: `tests/e2e/test_x.py::test_y`, or `e2e/test_x.py` for short in a table.
_TEST = re.compile(r"`((?:tests/)?(?:e2e|unit|property|trust|kernels|model|perf)/[\w/]+\.py)(?:::(\w+))?`")
_LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents(document):
    for target in _LINK.findall(document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tests_that_are_named(document):
    for file, function in _TEST.findall(document.read_text()):
        path = ROOT / "tests" / file.removeprefix("tests/")
        assert path.exists(), file
        if function:
            assert re.search(rf"^def {function}\b", path.read_text(), re.MULTILINE), f"{file}::{function}"


def test_every_row_of_the_compatibility_table_names_its_test():
    text = (ROOT / "docs" / "compatibility.md").read_text()
    part = text.split("<!-- packets -->")[1].split("<!-- /packets -->")[0]
    rows = [
        line for line in part.splitlines() if line.startswith("|") and not re.match(r"^\|[-| ]+\|$", line)
    ]
    cases = [row for row in rows if not row.startswith("| case")]
    assert len(cases) > 30
    for row in cases:
        assert _TEST.search(row.split("|")[-2]), row
