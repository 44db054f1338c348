# SPDX-License-Identifier: Apache-2.0
"""`python -m xmasq_link` is the command `xmasq`."""

import sys

from ._cli.main import main

sys.exit(main())
