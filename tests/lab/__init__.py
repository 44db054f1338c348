# SPDX-License-Identifier: Apache-2.0
"""The laboratory: hosts and containers made of network namespaces, for tests, demo and soak.

::

    with Lab() as lab:
        hosts = lab.hosts(2)
        overlay = routed_overlay(hosts, kind="xmasq")
        a, b = overlay.containers
        assert a.ping(b, count=10).lost == 0

A fabric (a Linux bridge in a namespace of its own) joins the hosts; its side of each host's link
is the place for faults, see :class:`Fabric`. Everything vanishes at the end of the ``with``.
"""

from .core import Lab
from .fabric import Capture, Fabric, Port, Rule
from .namespace import Namespace, PingResult
from .nodes import Container, Family, Host, Router
from .overlay import Overlay, bridged_overlay, routed_overlay, xmasq, xmasq_json
from .process import ROOT, LabError, patience
from .traffic import EchoResult, TransferResult, UdpService, tcp_transfer, udp_echo

__all__ = [
    "ROOT",
    "Capture",
    "Container",
    "EchoResult",
    "Fabric",
    "Family",
    "Host",
    "Lab",
    "LabError",
    "Namespace",
    "Overlay",
    "PingResult",
    "Port",
    "Router",
    "Rule",
    "TransferResult",
    "UdpService",
    "bridged_overlay",
    "patience",
    "routed_overlay",
    "tcp_transfer",
    "udp_echo",
    "xmasq",
    "xmasq_json",
]
