# SPDX-License-Identifier: Apache-2.0
"""The soak: all faults in random order, for minutes."""
