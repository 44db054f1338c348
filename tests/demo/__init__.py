# SPDX-License-Identifier: Apache-2.0
"""`make demo`: xmasq, VXLAN and plain routing side by side, in network namespaces of this machine.

All numbers in the report are measured in the same run. Modules: `stage` builds the networks, `story`
watches one new connection on the wire, `measure` compares the networks, `report` words what was
seen, `terminal` is the screen.
"""
