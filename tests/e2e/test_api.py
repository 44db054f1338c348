# SPDX-License-Identifier: Apache-2.0
"""The Python API beside other users of the same libraries in one process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.lab import ROOT, Lab, xmasq

pytestmark = pytest.mark.e2e

CODE = """
import sys
from pyroute2 import IPRoute
from pyroute2.netns import setns
setns(sys.argv[1])
with IPRoute() as ipr:
    index = ipr.link_lookup(ifname="xm0")[0]
    assert list(ipr.get_filters(index=index, parent=0xFFFFFFF3))
import xmasq_link
print(*(link.name for link in xmasq_link.links()))
"""


def test_links_are_found_after_others_have_read_filters():
    """pyroute2 compiles a class's attributes at its first use: ours must not inherit that."""
    with Lab() as lab:
        (host,) = lab.hosts(1)
        xmasq(host, "link", "add", "xm0", "id", "42", "local", host.address)
        done = subprocess.run(
            [sys.executable, "-c", CODE, host.name], capture_output=True, text=True, cwd=ROOT, timeout=30
        )
        assert (done.stdout, done.stderr) == ("xm0\n", "")
