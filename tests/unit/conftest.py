# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the unit tests."""

from tests.unit.harness import a, b, checksums, net, unentered_bench
from tests.unit.harness6 import host

__all__ = ["a", "b", "checksums", "host", "net", "unentered_bench"]
