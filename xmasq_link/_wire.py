# SPDX-License-Identifier: Apache-2.0
"""Wire constants."""

MARK, BOUNCE, SEG_BITS = 3, 7, 6
