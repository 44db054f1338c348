# SPDX-License-Identifier: Apache-2.0
"""The benchmark suite: `make bench`, or `python -m tests.perf PART…` for some of it.

docs/benchmarks.md says what is measured, how, and how to read it.
"""
