# SPDX-License-Identifier: Apache-2.0
"""Runs inside a guest. The tests run anywhere, and skip what the running kernel does not have."""
