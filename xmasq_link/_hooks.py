# SPDX-License-Identifier: Apache-2.0
"""Programs on the hooks of devices: tcx where the kernel has it (Linux 6.6), else clsact filters.

tcx, because adding a clsact qdisc stops the device for a moment (net/sched/sch_api.c, qdisc_graft),
and what it should have sent meanwhile is lost. Like filters, tcx programs stay until they are taken
off or the device goes, nobody has to hold them.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from pyroute2 import IPRoute
from pyroute2.netlink import nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.tcmsg import sched_bpf
from pyroute2.netlink.rtnl.tcmsg.act_police import nla_plus_police

from kmod_ebpf import bpf, loader

INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3  # TC_H_MIN_INGRESS, TC_H_MIN_EGRESS of clsact
_TCX = {INGRESS: bpf.TCX_INGRESS, EGRESS: bpf.TCX_EGRESS}
_ETH_P_ALL = 0x0300  # in network order, as in tcm_info


class _BpfOptions(nla, nla_plus_police):  # type: ignore[misc]
    """pyroute2 0.9 leaves out the program's id (linux/pkt_cls.h, TCA_BPF_ID = 11).

    Not derived from its class: what that has compiled of its own map by then would be inherited.
    """

    nla_map = (
        *sched_bpf.options.nla_map,
        ("TCA_BPF_FLAGS_GEN", "uint32"),
        ("TCA_BPF_TAG", "hex"),
        ("TCA_BPF_ID", "uint32"),
    )
    bpf_act = sched_bpf.options.bpf_act


sched_bpf.options = _BpfOptions


@dataclass(frozen=True)
class Filter:
    """One of our programs on a device. prio and handle are those of a filter, 0 with tcx.

    name: in the kernel. program: as in loader.PROGRAMS, and family, 4 or 6, if it is one of those.
    """

    ifindex: int
    parent: int
    prio: int
    handle: int
    name: str
    prog_id: int

    @property
    def program(self) -> str:
        return (loader.program_of(self.name) or ("", 0))[0]

    @property
    def family(self) -> int:
        return (loader.program_of(self.name) or ("", 0))[1]


def is_program(name: str) -> bool:
    """Whether a program of this name in the kernel is one of a datapath."""
    return loader.program_of(name) is not None


@functools.cache
def has_tcx() -> bool:
    """Whether the kernel has tcx."""
    try:
        bpf.prog_query(1, bpf.TCX_INGRESS)
    except PermissionError:
        raise  # or nobody would be told that there is nothing
    except OSError as e:
        return e.errno == errno.ENODEV
    return True


def _raw_filters(ipr: IPRoute, ifindex: int, parent: int) -> Iterator[tuple[int, int, str, str, int | None]]:
    """Priority, handle, kind, name and program id of all clsact filters of a hook."""
    try:
        dump = ipr.get_filters(index=ifindex, parent=parent)
    except NetlinkError as e:
        if e.code in (errno.EINVAL, errno.ENODEV):  # no clsact, or no such device any more
            return
        raise
    for msg in dump:
        options = msg.get_attr("TCA_OPTIONS")
        name = prog = None
        if msg.get_attr("TCA_KIND") == "bpf" and options:
            name, prog = options.get_attr("TCA_BPF_NAME"), options.get_attr("TCA_BPF_ID")
        yield msg["info"] >> 16, msg["handle"], msg.get_attr("TCA_KIND") or "", name or "", prog


@functools.lru_cache(maxsize=64)
def _name(prog_id: int) -> str:
    """A program's name. The kernel gives an id again only after two thousand million others."""
    fd = bpf.prog_fd(prog_id)
    try:
        return bpf.prog_info(fd).name
    finally:
        os.close(fd)


def _tcx(ifindex: int, parent: int) -> Iterator[tuple[str, int]]:
    """Names and ids of the tcx programs of a hook."""
    if not has_tcx():
        return
    try:
        ids = bpf.prog_query(ifindex, _TCX[parent])
    except OSError as e:
        if e.errno == errno.ENODEV:
            return
        raise
    for prog_id in ids:
        try:
            yield _name(prog_id), prog_id
        except FileNotFoundError:
            continue  # went away meanwhile


def filters(
    ipr: IPRoute,
    ifindex: int,
    ours: Callable[[str], bool] = is_program,
    clsact: Collection[int] | None = None,
) -> list[Filter]:
    """Our programs on a device, in the order in which they run on each hook.

    ours: by their names. clsact: the devices that have such a qdisc, if the caller knows.
    """
    found = []
    for parent in (INGRESS, EGRESS):
        found += [
            Filter(ifindex, parent, 0, 0, name, prog) for name, prog in _tcx(ifindex, parent) if ours(name)
        ]
        if clsact is None or ifindex in clsact:
            found += [
                Filter(ifindex, parent, prio, handle, name, prog)
                for prio, handle, _, name, prog in _raw_filters(ipr, ifindex, parent)
                if prog is not None and ours(name)
            ]
    return found


def clsact_devices(ipr: IPRoute) -> set[int]:
    """Indexes of the devices that have a clsact qdisc."""
    return {q["index"] for q in ipr.get_qdiscs() if q.get_attr("TCA_KIND") == "clsact"}


def attach(ipr: IPRoute, ifindex: int, parent: int, name: str, fd: int) -> None:
    """Puts a program at the front of a hook; what else is there stays as it is.

    The front, because a foreign program that ends the chain would otherwise keep our packets, and
    with them the marks that sanitising looks for, from us.
    """
    if has_tcx():
        bpf.prog_attach(ifindex, _TCX[parent], fd)
        return
    taken = list(_raw_filters(ipr, ifindex, parent))
    handles = {(prio, handle) for prio, handle, *_ in taken}
    foreign = {prio for prio, _, kind, _, _ in taken if kind != "bpf"}
    prio = next(p for p in range(1, 65536) if p not in foreign)
    handle = next(h for h in range(1, 65536) if (prio, h) not in handles)
    ipr.tc(
        "add-filter", "bpf", ifindex, handle, fd=fd, name=name, parent=parent, direct_action=True, prio=prio
    )


def detach(ipr: IPRoute, f: Filter) -> None:
    """Takes one of our programs off."""
    with _gone_is_fine():
        if f.prio == 0:
            _detach_tcx(f)
            return
        ipr.tc(
            "del-filter",
            index=f.ifindex,
            handle=f.handle,
            parent=f.parent,
            kind="bpf",
            info=f.prio << 16 | _ETH_P_ALL,
        )


def _detach_tcx(f: Filter) -> None:
    fd = bpf.prog_fd(f.prog_id)
    try:
        bpf.prog_detach(f.ifindex, _TCX[f.parent], fd)
    finally:
        os.close(fd)


def prepare(ipr: IPRoute, ifindex: int, undo: contextlib.ExitStack) -> None:
    """Sees to it that a device has hooks: without tcx, that is a clsact qdisc.

    It stays for good. To take it away the kernel would stop the device once more.
    """
    if not has_tcx() and ifindex not in clsact_devices(ipr):
        undo.callback(_remove_clsact, ipr, ifindex)
        ipr.tc("add", "clsact", ifindex)


def _remove_clsact(ipr: IPRoute, ifindex: int) -> None:
    """Undoes the qdisc of a creation that failed, unless somebody uses it by now."""
    if not any(True for parent in (INGRESS, EGRESS) for _ in _raw_filters(ipr, ifindex, parent)):
        with _gone_is_fine():
            ipr.tc("del", "clsact", ifindex)


@contextlib.contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except (OSError, NetlinkError) as e:
        code = e.code if isinstance(e, NetlinkError) else e.errno
        if code not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
            raise
