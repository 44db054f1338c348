# SPDX-License-Identifier: Apache-2.0
"""`python -m xmasq_link` is the command `xmasq`."""

import signal
import sys

# Until the command has its own handler, Ctrl-C ends it without a word.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from ._cli.main import main  # noqa: E402

sys.exit(main())
