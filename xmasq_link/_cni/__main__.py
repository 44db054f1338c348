# SPDX-License-Identifier: Apache-2.0
"""`python -m xmasq_link._cni` is xmasq-cni."""

import sys

from .plugin import main

sys.exit(main())
