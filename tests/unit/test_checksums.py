# SPDX-License-Identifier: Apache-2.0
"""What the kernel notes of a packet's checksum (skb->ip_summed, linux/skbuff.h) stays right."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kmod_ebpf import bpf
from tests.unit.harness import REDIRECT, Node, negotiate
from tests.unit.harness6 import ENCODED as ENCODABLE6
from tests.unit.harness6 import Host
from tests.unit.packets import ENCODABLE

pytestmark = pytest.mark.root


# --- CHECKSUM_COMPLETE: a NIC has summed up all that is behind the link layer's header ------------


@contextmanager
def complete() -> Iterator[int]:
    """Flags for test runs whose packet comes with such a sum; the kernel compares it afterwards."""
    try:
        yield bpf.TEST_COMPLETE
    except OSError as e:
        if e.errno == errno.EINVAL:
            pytest.skip("this kernel's test runs cannot have CHECKSUM_COMPLETE")
        if e.errno == errno.EBADMSG:
            pytest.fail("skb->csum is not the packet's sum any more")
        raise


@pytest.mark.parametrize("kind", ENCODABLE)
def test_a_nics_sum_stays_that_of_the_packet(a: Node, b: Node, kind: str) -> None:
    inner = ENCODABLE[kind]
    negotiate(a, b, inner)
    with complete() as flags:
        out = a.encode(inner, flags=flags)
        assert out == a.encode(inner)
        packet = b.arriving(out.packet)
        back = b.ingress(packet, flags=flags)
        assert (back.action, back) == (REDIRECT, b.ingress(packet))


@pytest.mark.parametrize("kind", ENCODABLE6)
def test_a_nics_sum_stays_that_of_the_packet_over_ipv6(host: Host, kind: str) -> None:
    inner = ENCODABLE6[kind]
    with complete() as flags:
        out = host.encode(inner, flags)
        assert out == host.encode(inner)
        assert out[0] == REDIRECT
        assert host.ingress(out[1], flags) == host.ingress(out[1])
