# SPDX-License-Identifier: Apache-2.0
"""Two guests on one wire, see tests/kernels/pair.py: the second one's agent, and the first one's tests."""
