# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the unit tests."""

from tests.unit.harness import a, b, net, unentered_bench

__all__ = ["a", "b", "net", "unentered_bench"]
