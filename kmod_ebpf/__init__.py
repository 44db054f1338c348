# SPDX-License-Identifier: GPL-2.0-only
"""The datapath of xmasq: C sources under src/, their loader, and the view of their maps."""
