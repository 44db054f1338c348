# SPDX-License-Identifier: Apache-2.0
"""The public names of the API. A name here is a promise: taking one away needs a new major version."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys

import xmasq_link

FUNCTIONS = {
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
}
#: They do not ask about links, or go on for long.
NO_NETNS = {"flannel_data", "netns", "run_agent", "serve_metrics", "watch_links"}
DATA = {
    "Change",
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
}
OTHERS = {"Capture", "InputError", "Meter", "Monitor", "XmasqError"}


def test_all_of_them():
    assert set(xmasq_link.__all__) == FUNCTIONS | DATA | OTHERS
    assert list(xmasq_link.__all__) == sorted(xmasq_link.__all__, key=lambda n: (not n[0].isupper(), n))


def test_each_is_documented_and_typed():
    for name in xmasq_link.__all__:
        thing = getattr(xmasq_link, name)
        assert inspect.getdoc(thing), name
        if name in FUNCTIONS:
            signature = inspect.signature(thing)
            assert signature.return_annotation is not inspect.Signature.empty, name
            for parameter in signature.parameters.values():
                assert parameter.annotation is not inspect.Parameter.empty, (name, parameter)


def test_data_cannot_be_changed():
    for name in DATA:
        thing = getattr(xmasq_link, name)
        assert dataclasses.is_dataclass(thing), name
        assert thing.__dataclass_params__.frozen, name


def test_where_a_function_works():
    for name in FUNCTIONS - NO_NETNS:
        parameter = inspect.signature(getattr(xmasq_link, name)).parameters["netns"]
        assert (parameter.kind, parameter.default) == (inspect.Parameter.KEYWORD_ONLY, None), name


def test_importing_it_costs_little():
    """pyroute2 and the like are imported when they are needed."""
    heavy = ("pyroute2", "bcc", "scapy", "rich", "prometheus_client")
    code = f"import sys, xmasq_link; print(*(m for m in {heavy} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("\n", "")
