# SPDX-License-Identifier: Apache-2.0
"""The kernels that the tests run on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Series:
    """A kernel series: its name on the command line, and where Debian has it.

    ``prefix`` is what the package's version begins with; empty means the highest of all.
    """

    name: str
    suites: tuple[str, ...]
    prefix: str = ""


#: From the oldest to the newest. A suite called ``…-security`` is in the archive's security part.
SERIES = (
    Series("5.10", ("bullseye", "bullseye-security"), "5.10."),
    Series("6.1", ("bookworm", "bookworm-security"), "6.1."),
    Series("6.12", ("bookworm-backports",), "6.12."),
    Series("newest", ("trixie-backports", "sid")),
)

#: What continuous integration runs: the oldest, and the youngest with long-term support.
CORE = ("5.10", "6.12")
#: The tests that it runs there, in this order: what the verifier says, then traffic. None of them minds how
#: slow the machine is.
CORE_TESTS = (
    "tests/unit/test_loader.py",
    "tests/kernels/guest/test_machine.py::test_the_kernel_takes_every_program",
    "tests/kernels/guest/test_machine.py::test_the_kernel_takes_the_programs_that_come_on_demand",
    "tests/e2e/test_link.py::test_ping_tcp_and_udp_both_ways",
    "tests/e2e/test_link.py::test_full_size_packets[routed]",
    "tests/e2e/test_ipv6.py::test_ping_tcp_and_udp_both_ways[routed]",
    "tests/e2e/test_keys.py::test_a_long_flow_stays_encoded[routed]",
    "tests/e2e/test_routes.py",
    "tests/e2e/test_lifecycle.py::test_deletion_leaves_nothing_and_the_underlay_alone[routed]",
)


class KernelsError(Exception):
    """Something that the runner was asked to do did not work; the text is for the user."""


class NoKernelError(KernelsError):
    """A kernel is neither in the cache nor to be had from the archive."""


def find(name: str) -> Series:
    """The series called ``name``. Raises :class:`KernelsError`."""
    for one in SERIES:
        if one.name == name:
            return one
    raise KernelsError(f"kernel {name!r}: {', '.join(one.name for one in SERIES)} are allowed")
