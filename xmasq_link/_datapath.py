# SPDX-License-Identifier: Apache-2.0
"""The datapath of a network namespace: found from the kernel, loaded, attached, taken away.

There is no state file. The filters that bear our programs lead to the programs' ids, these to the
maps, and the maps say the rest.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import secrets
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar, cast

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kmod_ebpf import bpf, loader
from kmod_ebpf import maps as m

from . import _hold
from ._errors import InputError, XmasqError
from ._hooks import EGRESS, INGRESS, Filter, attach, clsact_devices, detach, filters, prepare
from ._netns import Netns, netns
from ._wire import BOUNCE, MARK, SEG_BITS

_P = ParamSpec("_P")
_R = TypeVar("_R")
ENCODE_MD, ARRIVE_MD = loader.METADATA
ENCODE, ARRIVE, IN, OUT = "xmasq_encode", "xmasq_arrive", "xmasq_ingress", "xmasq_egress"


def u32(value: int) -> bytes:
    """A map key."""
    return value.to_bytes(4, "little")


def _all_devices() -> Iterator[int]:
    """Indexes of all devices; asks the kernel when the first is wanted."""
    for index, _ in socket.if_nameindex():
        yield index


class Datapath:
    """Open descriptors of a namespace's maps and programs for one family of the underlay.

    family: 4 or 6. types: the structures in its maps. Use as a context manager.
    """

    def __init__(self, maps: dict[str, bpf.Map], programs: dict[str, int], family: int = 4) -> None:
        self.maps = maps
        self.programs = programs
        self.family = family
        self.types = m.TYPES[family]

    def __enter__(self) -> Datapath:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the descriptors; what is attached stays."""
        loader.Loaded(self.maps, self.programs).close()
        self.maps, self.programs = {}, {}

    @classmethod
    def find(cls, ipr: IPRoute, devices: list[int] | None = None, family: int = 4) -> Datapath | None:
        """The namespace's datapath for one family, or None. devices: those to look at first."""
        return next(iter(cls.find_all(ipr, devices, [family])), None)

    @classmethod
    def find_all(
        cls, ipr: IPRoute, devices: list[int] | None = None, families: Collection[int] = (4, 6)
    ) -> list[Datapath]:
        """The namespace's datapaths, one for each family that has one.

        devices: those to look at first. families: those that are wanted; the search ends with them.
        """
        seen: dict[int, dict[str, int]] = {family: {} for family in families}
        clsact = clsact_devices(ipr)
        for ifindex in itertools.chain(devices or [], _all_devices()):
            for f in filters(ipr, ifindex, clsact=clsact):
                if f.family in seen:
                    seen[f.family].setdefault(f.program, f.prog_id)
            if all(programs.keys() >= set(loader.PROGRAMS) for programs in seen.values()):
                break
        with contextlib.ExitStack() as undo:
            found = []
            for family, programs in seen.items():
                dp = cls._open(programs, family) if programs else None
                if dp is not None:
                    undo.callback(dp.close)
                    found.append(dp)
            undo.pop_all()
        return found

    @classmethod
    def _open(cls, seen: Mapping[str, int], family: int) -> Datapath | None:
        dp = cls({}, {}, family)
        try:
            ids: set[int] = set()
            for name, prog_id in seen.items():
                try:
                    fd = bpf.prog_fd(prog_id)
                except FileNotFoundError:
                    continue  # went away meanwhile
                dp.programs[name] = fd
                ids.update(bpf.prog_info(fd).map_ids)
            for map_id in ids:
                opened = bpf.Map.from_fd(bpf.map_fd(map_id))
                dp.maps[opened.name] = opened
        except BaseException:
            dp.close()
            raise
        if "links" not in dp.maps:
            dp.close()
            return None
        if not dp._ours():
            dp.close()
            raise XmasqError(
                "another version of xmasq has loaded the datapath of this network namespace; delete its "
                "links or detach its devices with that version"
            )
        return dp

    def _ours(self) -> bool:
        """Whether keys and values have the sizes of this version's structures."""
        for name, opened in self.maps.items():
            if name in m.LAYOUTS[self.family]:
                key, value = (ctypes.sizeof(t) if t else 4 for t in m.LAYOUTS[self.family][name])
                if (opened.key_size, opened.value_size) != (key, value):
                    return False
        return True

    @classmethod
    def load(
        cls,
        seg_bits: int | None = None,
        key_bits: int | None = None,
        mark: int | None = None,
        bounce: int | None = None,
        flows: int | None = None,
        family: int = 4,
    ) -> Datapath:
        """Compiles if need be, and loads a datapath that nothing is attached to yet.

        flows: how many flows there may be. None takes the default. family: of the underlay; over IPv6,
        keys are in the flow label, and the bits of IPv4's do not matter.
        """
        try:
            sizes = {} if flows is None else dict.fromkeys(("flows", "txkeys", "grants"), flows)
            loaded = loader.load(loader.compile_object(family=family), sizes)
        except loader.LoadError as e:
            if e.missing:
                raise InputError("kernel", f"this one lacks what xmasq needs: {e.missing}") from e
            raise XmasqError(str(e)) from e
        except loader.CompileError as e:
            raise XmasqError(str(e)) from e
        dp = cls(loaded.maps, loaded.programs, family)
        hold = _hold.read(family)
        conf = m.Conf(
            magic=(secrets.randbits(32) & ~0xF) or 0x10,
            mark=MARK if mark is None else mark,
            bounce=BOUNCE if bounce is None else bounce,
            seg_bits=0 if family == 6 else SEG_BITS if seg_bits is None else seg_bits,
            xbits=0 if family == 6 else key_bits or 0,
            salt=secrets.randbits(64),
            tag=secrets.randbits(64),
            stamp=secrets.randbits(16),
            rx_hold=hold.rx_ns,
            tx_hold=hold.tx_ns,
        )
        dp.maps["conf"].update(u32(0), conf.raw())
        return dp

    @property
    def whole(self) -> bool:
        """Whether all programs are there: with one that others removed, its maps went, too."""
        return self.programs.keys() >= set(loader.PROGRAMS)

    def conf(self) -> m.Conf:
        """The settings."""
        raw = self.maps["conf"].lookup(u32(0))
        assert raw is not None  # an array map has all its keys
        return m.Conf.parse(raw)

    def links(self) -> dict[int, Any]:
        """All links by their index in the maps."""
        found = {}
        for key, raw in self.maps["links"].items():
            if any(raw[:4]):  # ifindex
                found[int.from_bytes(key, "little")] = self.types.Link.parse(raw)
        return found

    def put_link(self, idx: int, link: Any) -> None:
        """Writes a link's settings."""
        self.maps["links"].update(u32(idx), link.raw())

    def stats(self, idx: int) -> dict[str, int]:
        """Counters of a link, summed over CPUs; index 0 counts what belongs to no link."""
        raw = self.maps["stats"].lookup(u32(idx)) or b""
        total = [0] * len(m.COUNTERS)
        words = memoryview(raw).cast("Q") if raw else memoryview(b"").cast("B")
        for i, value in enumerate(words):
            total[i % len(total)] += value
        return dict(zip(m.COUNTERS, total, strict=True))

    def clear_stats(self, idx: int) -> None:
        """Sets a link's counters to 0."""
        self.maps["stats"].update(u32(idx), bytes(8 * len(m.COUNTERS) * bpf.possible_cpus()))

    def hook_underlay(self, ipr: IPRoute, ifindex: int, mtu: int, undo: contextlib.ExitStack) -> None:
        """Sees to it that an underlay device has the hooks."""
        prepare(ipr, ifindex, undo)
        undo.callback(self.release_underlay, ipr, ifindex)
        self.maps["underlays"].update(u32(ifindex), m.Underlay(mtu=mtu).raw())
        for parent, name in ((EGRESS, OUT), (INGRESS, IN)):
            self._hook(ipr, ifindex, parent, name)

    def _hook(self, ipr: IPRoute, ifindex: int, parent: int, name: str) -> None:
        """Sees to it that one of our programs is on a hook, in place of one that a dead datapath left."""
        mine = bpf.prog_info(self.programs[name]).id
        present = [f for f in self.filters(ipr, ifindex) if f.program == name]
        if all(f.prog_id != mine for f in present):
            kernel_name = loader.kernel_name(name, self.family)
            attach(ipr, ifindex, parent, kernel_name, self.programs[name])
        for f in present:
            if f.prog_id != mine:
                detach(ipr, f)

    def filters(self, ipr: IPRoute, ifindex: int) -> list[Filter]:
        """The programs of this family's datapath, or of an earlier one, on a device."""
        return [f for f in filters(ipr, ifindex) if f.family == self.family]

    def release_underlay(self, ipr: IPRoute, ifindex: int) -> None:
        """Removes the hooks of an underlay device if no link needs them any more."""
        if any(ifindex in link.underlays for link in self.links().values()):
            return
        for f in self.filters(ipr, ifindex):
            detach(ipr, f)
        self.maps["underlays"].delete(u32(ifindex))

    def hook_link(
        self, ipr: IPRoute, ifindex: int, undo: contextlib.ExitStack, *, external: bool = False
    ) -> None:
        """Attaches encode and arrive to a link, and to an external one what goes before them.

        They go with the device.
        """
        prepare(ipr, ifindex, undo)
        undo.callback(self.unhook_link, ipr, ifindex)
        self._hook(ipr, ifindex, INGRESS, ARRIVE)
        self._hook(ipr, ifindex, EGRESS, ENCODE)
        if external:
            for parent, name in ((INGRESS, ARRIVE_MD), (EGRESS, ENCODE_MD)):
                if name not in self.programs:
                    self.programs[name] = self._load_program(name)
                self._hook(ipr, ifindex, parent, name)

    def _load_program(self, name: str) -> int:
        try:
            return loader.load_program(loader.compile_object(family=self.family), name, self.maps)
        except (loader.CompileError, loader.LoadError) as e:
            raise XmasqError(str(e)) from e

    def unhook_link(self, ipr: IPRoute, ifindex: int) -> None:
        """Removes encode and arrive from a device that stays."""
        for f in self.filters(ipr, ifindex):
            detach(ipr, f)

    def add_link(self, idx: int, link: Any, undo: contextlib.ExitStack) -> None:
        """Enters a link into the maps."""
        undo.callback(self.drop_link, idx)
        self.clear_stats(idx)
        self.put_link(idx, link)
        self._note_port(link)
        self.maps["vteps"].update(bytes(link.local), m.Vtep(port=link.port).raw())
        self.maps["vnis"].update(self._vni_key(link), u32(idx))
        self.maps["link_ids"].update(u32(link.ifindex), u32(idx))

    def _note_port(self, link: m.Link) -> None:
        """Lets the underlay's hook know at which ports it has to look closer."""
        conf = self.conf()
        bit = 1 << (int.from_bytes(bytes(link.port), "big") & 63)
        if not conf.ports & bit:
            conf.ports |= bit
            self.maps["conf"].update(u32(0), conf.raw())

    def drop_link(self, idx: int) -> None:
        """Removes a link from the maps. Its keys stay reserved; packets that bear them bounce."""
        link: Any = self.types.Link.parse(self.maps["links"].lookup(u32(idx)) or b"")
        self.put_link(idx, self.types.Link(tx_gen=link.tx_gen + 1, rx_gen=link.rx_gen + 1))
        if not link.ifindex or not self.whole:  # the tables of lost programs went with them
            return
        self.maps["link_ids"].delete(u32(link.ifindex))
        self.maps["vnis"].delete(self._vni_key(link))
        if all(bytes(other.local) != bytes(link.local) for other in self.links().values()):
            self.maps["vteps"].delete(bytes(link.local))

    def _vni_key(self, link: Any) -> bytes:
        return self.types.VniKey(local=link.local, vni=link.vni).raw()

    def slots(self, now: int) -> Iterator[tuple[int, int, Any]]:
        """The keys that are reserved at a boot time in ns: index of the block, index in it, slot."""
        for idx, block in self.values("blocks") if "blocks" in self.maps else ():
            if block.busy_until >= now:
                for at, slot in enumerate(block.slots):
                    if slot.until >= now:
                        yield idx, at, slot

    def values(self, name: str) -> Iterator[tuple[Any, Any]]:
        """Keys and values of a map as structures (an int where the map has a plain u32)."""
        key_type, value_type = m.LAYOUTS[self.family][name]
        for key, value in self.maps[name].items():
            yield (
                key_type.parse(key) if key_type else int.from_bytes(key, "little"),
                value_type.parse(value) if value_type else int.from_bytes(value, "little"),
            )


def require_root() -> None:
    """Raises InputError where programs cannot be loaded or hooks not be set."""
    if os.geteuid() != 0:
        raise InputError("user", "only root can do that (CAP_NET_ADMIN, CAP_BPF and CAP_SYS_ADMIN)")


def said(e: NetlinkError) -> str:
    """What the kernel said: in words, where it has any (linux/netlink.h, NLMSGERR_ATTR_MSG)."""
    reason = os.strerror(e.code)
    text = str(e.args[1]) if len(e.args) > 1 else reason
    return reason if text == reason else f"{reason} ({text})"


def _why(e: OSError | NetlinkError) -> str:
    if isinstance(e, NetlinkError):
        return said(e)
    return f"{e.strerror or e}" + (f": {e.filename}" if e.filename else "")


def api(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A public function: what the kernel refuses reaches the caller as XmasqError.

    Its keyword netns, if it has one, says in which namespace it works.
    """

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            with netns(_where(kwargs)):
                return function(*args, **kwargs)
        except (OSError, NetlinkError) as e:
            raise XmasqError(f"the kernel refuses: {_why(e)}") from e

    return wrapped


def api_iterator(function: Callable[_P, Iterator[_R]]) -> Callable[_P, Iterator[_R]]:
    """The same for a generator function.

    Up to its first row it works in the namespace; behind that it must need descriptors only, for
    the caller goes on elsewhere between two rows.
    """

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> Iterator[_R]:
        try:
            rows = function(*args, **kwargs)
            with netns(_where(kwargs)):
                first = list(itertools.islice(rows, 1))
            yield from first
            yield from rows
        except (OSError, NetlinkError) as e:
            raise XmasqError(f"the kernel refuses: {_why(e)}") from e

    return wrapped


def _where(kwargs: Mapping[str, object]) -> Netns | None:
    return cast("Netns | None", kwargs.get("netns"))
