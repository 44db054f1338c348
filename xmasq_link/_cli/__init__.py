# SPDX-License-Identifier: Apache-2.0
"""The command line `xmasq`: words in, calls of the public API, text or JSON out (docs/cli.md)."""

import os
import signal
import sys

if os.path.basename(sys.argv[0]) == "xmasq":
    # pip's start script: until the command has its own handler, Ctrl-C ends it without a word.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
