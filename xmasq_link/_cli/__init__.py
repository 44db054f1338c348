# SPDX-License-Identifier: Apache-2.0
"""The command line `xmasq`: words in, calls of the public API, text or JSON out (docs/cli.md)."""
