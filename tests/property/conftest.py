# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the property tests."""

from tests.unit.harness import unentered_bench

__all__ = ["unentered_bench"]
