# SPDX-License-Identifier: Apache-2.0
"""xmasq: a tunnel link type without encapsulation.

All functions work in the calling thread's network namespace. `with netns("blue"):` changes that for a
while, and the keyword netns= for one call: a name, a path, a file descriptor, or a pyroute2 object.
They raise InputError for a bad argument and XmasqError for everything that the kernel or the
environment refuses.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._errors import InputError, XmasqError

if TYPE_CHECKING:
    from ._attach import attach_link, detach_link, refresh_link
    from ._capture import Capture, capture
    from ._cni.agent import run_agent
    from ._doctor import diagnose
    from ._explain import explain
    from ._flannel import flannel_add, flannel_data, flannel_remove, flannel_start
    from ._flow import flows, flush, keys, peers
    from ._link import create_link, delete_link, iter_links, links, prune_links, set_link
    from ._meter import Meter, meter
    from ._metrics import metrics, serve_metrics
    from ._model import (
        Condition,
        Event,
        Explanation,
        Finding,
        Flow,
        FlowRate,
        Frame,
        Key,
        Link,
        LinkRate,
        Metric,
        Peer,
        Rates,
        Sample,
        Statistics,
        Traffic,
    )
    from ._monitor import Monitor, monitor
    from ._netns import netns
    from ._watch import Change, watch_links

__all__ = [
    "Capture",
    "Change",
    "Condition",
    "Event",
    "Explanation",
    "Finding",
    "Flow",
    "FlowRate",
    "Frame",
    "InputError",
    "Key",
    "Link",
    "LinkRate",
    "Meter",
    "Metric",
    "Monitor",
    "Peer",
    "Rates",
    "Sample",
    "Statistics",
    "Traffic",
    "XmasqError",
    "attach_link",
    "capture",
    "create_link",
    "delete_link",
    "detach_link",
    "diagnose",
    "explain",
    "flannel_add",
    "flannel_data",
    "flannel_remove",
    "flannel_start",
    "flows",
    "flush",
    "iter_links",
    "keys",
    "links",
    "meter",
    "metrics",
    "monitor",
    "netns",
    "peers",
    "prune_links",
    "refresh_link",
    "run_agent",
    "serve_metrics",
    "set_link",
    "watch_links",
]

_HOME = {
    "_cni.agent": ("run_agent",),
    "_capture": ("Capture", "capture"),
    "_doctor": ("diagnose",),
    "_explain": ("explain",),
    "_attach": ("attach_link", "detach_link", "refresh_link"),
    "_flannel": ("flannel_add", "flannel_data", "flannel_remove", "flannel_start"),
    "_flow": ("flows", "flush", "keys", "peers"),
    "_link": ("create_link", "delete_link", "iter_links", "links", "prune_links", "set_link"),
    "_meter": ("Meter", "meter"),
    "_metrics": ("metrics", "serve_metrics"),
    "_model": (
        "Condition",
        "Event",
        "Explanation",
        "Finding",
        "Flow",
        "FlowRate",
        "Frame",
        "Key",
        "Link",
        "LinkRate",
        "Metric",
        "Peer",
        "Rates",
        "Sample",
        "Statistics",
        "Traffic",
    ),
    "_monitor": ("Monitor", "monitor"),
    "_netns": ("netns",),
    "_watch": ("Change", "watch_links"),
}


def __getattr__(name: str) -> Any:
    """Imports on first use: pyroute2 alone takes longer than most commands."""
    for module, names in _HOME.items():
        if name in names:
            value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
