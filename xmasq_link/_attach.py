# SPDX-License-Identifier: Apache-2.0
"""Making an xmasq link of a vxlan device that somebody else has made, and undoing that.

The device itself is not changed: it gets programs on its hooks, and loses them again.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from kmod_ebpf import maps as m
from kmod_ebpf.loader import METADATA

from . import _device as _dev
from . import _hold, _offload, _underlay, _vxlan
from ._datapath import ARRIVE, ENCODE, IN, OUT, Datapath, api, require_root, u32
from ._errors import InputError
from ._hooks import filters
from ._link import (
    FLOWS_MAX,
    FLOWS_MIN,
    IPAddress,
    _check_code_points,
    _code_point,
    _data,
    _device,
    _in_range,
    _ip,
    _reap,
    _Request,
    check_against_links,
    check_bits,
    check_lease,
    check_name,
    check_secret,
    device_names,
    enter_link,
    find_link,
    find_links,
    free_index,
    link_of,
    take_keys_back,
    usable,
)
from ._model import Link
from ._netns import Netns, locked
from ._withdraw import withdraw

_QUIET, _PATIENCE = 0.05, 1.0  # seconds


@api
def attach_link(
    name: str,
    *,
    dev: str | Sequence[str] | None = None,
    local: str | None = None,
    lease_ms: int = _hold.LEASE_DEFAULT_MS,
    secret: bytes | None = None,
    seg_bits: int | None = None,
    key_bits: int | None = None,
    mark: int | None = None,
    bounce: int | None = None,
    flows: int | None = None,
    netns: Netns | None = None,
) -> Link:
    """Makes an xmasq link of an existing vxlan device, all of it or nothing. The device stays as it is.

    dev: the devices with the underlay hooks, by default the vxlan device's lower device, else as for
    create_link. local: the VTEP address, only for a device that has none of its own. The others
    are those of create_link.

    Raises InputError for a bad argument or a device that cannot be a link, XmasqError if the kernel
    refuses.
    """
    check_name(name)
    address = check_options(dev, local, lease_ms, secret, seg_bits, key_bits, mark, bounce, flows)
    require_root()
    with locked(), IPRoute() as ipr, contextlib.ExitStack() as close:
        device = _device(ipr, name)
        if device is None:
            raise InputError("name", f'there is no device "{name}"')
        want = replace(
            _request(ipr, device, address, _underlay.names_of(dev)),
            lease_ms=lease_ms,
            secret=secret,
            seg_bits=seg_bits,
            key_bits=key_bits,
            mark=mark,
            bounce=bounce,
            flows=flows,
        )
        check_bits(seg_bits, key_bits, want.local)
        dp = usable(
            ipr, close, want.local.version, lambda found: _drop_spoilt(ipr, found, device["index"], name)
        )
        underlays = _underlay.choose(ipr, want.local, want.dev)
        for one in underlays:
            _offload.check(one, want.local.version)
        check_against_links(want, dp)
        if dp is None:
            dp = Datapath.load(seg_bits, key_bits, mark, bounce, flows, want.local.version)
            close.callback(dp.close)
        _hold.live(lease_ms, want.local.version)
        flags = m.LINK_ATTACHED
        if want.vni == m.VNI_ANY:
            flags |= m.LINK_EXTERNAL
            _check_external(name, want.local, free_index(dp))
        with contextlib.ExitStack() as undo:
            enter_link(ipr, dp, free_index(dp), want, device, underlays, flags, undo)
            made = link_of(ipr, dp, name)
            undo.pop_all()
    return made


def check_options(
    dev: str | Sequence[str] | None = None,
    local: str | None = None,
    lease_ms: int = _hold.LEASE_DEFAULT_MS,
    secret: bytes | None = None,
    seg_bits: int | None = None,
    key_bits: int | None = None,
    mark: int | None = None,
    bounce: int | None = None,
    flows: int | None = None,
) -> IPAddress | None:
    """Checks what attach_link is given, as far as that needs no kernel; returns local. Raises InputError."""
    address = _ip("local", local) if local else None
    for one in _underlay.names_of(dev):
        _dev.check_name("dev", one)
    check_lease(lease_ms)
    check_secret(secret)
    check_bits(seg_bits, key_bits)
    _code_point("mark", mark, key_bits)
    _code_point("bounce", bounce, key_bits)
    _check_code_points(mark, bounce)
    if flows is not None:
        _in_range("flows", flows, FLOWS_MIN, FLOWS_MAX)
    return address


@api
def detach_link(name: str, *, netns: Netns | None = None) -> None:
    """Makes an attached link a plain vxlan device again, without losing a packet.

    The keys that this host has given are taken back first. The device keeps an empty clsact qdisc where
    the kernel needed one. Raises InputError, XmasqError.
    """
    require_root()
    with locked(), IPRoute() as ipr, find_link(ipr, name) as (dp, idx, link):
        if not link.flags & m.LINK_ATTACHED:
            raise InputError("name", f'"{name}" was made as an xmasq link, and can only be deleted')
        take_apart(ipr, dp, idx, link)
        _reap(ipr, dp)
        if not dp.links():
            _hold.removed(dp.family)


@api
def state_of(name: str, dev: str | Sequence[str] | None = None, *, netns: Netns | None = None) -> str:
    """What a vxlan device is, for those that keep it attached. Raises InputError.

    "plain"; "attached", or "made" as a link; or it was attached, and others have "spoilt" its hooks; it
    was "moved", as its underlay is another device now; or it was "changed": its own address or the
    underlay's MTU is another one than the datapath knows.
    """
    with IPRoute() as ipr, find_links(ipr) as found:
        device = _device(ipr, name)
        if device is None:
            raise InputError("name", f'there is no device "{name}"')
        every = ((dp, link) for dp, links in found for link in links.values())
        one = next(((dp, link) for dp, link in every if link.ifindex == device["index"]), None)
        if one is None:
            return "plain"
        dp, link = one
        if not link.flags & m.LINK_ATTACHED:
            return "made"
        if link.flags & m.LINK_HALF or not dp.whole or not whole(ipr, link):
            return "spoilt"
        local = ipaddress.ip_address(bytes(link.local))
        want = _request(ipr, device, local, _underlay.names_of(dev))
        underlays = _underlay.choose(ipr, want.local, want.dev)
        if [one["index"] for one in underlays] != _underlay.indexes(link):
            return "moved"
        same = bytes(link.mac) == bytes(_mac(device)) and all(
            dp.maps["underlays"].lookup(u32(one["index"])) == _underlay_entry(one) for one in underlays
        )
        return "attached" if same else "changed"


@api
def refresh_link(name: str, *, netns: Netns | None = None) -> None:
    """Has the datapath know the present address of a link's device and the underlay's MTU.

    Flows that are encoded keep to the old MTU until they are flushed. Raises InputError, XmasqError.
    """
    require_root()
    with locked(), IPRoute() as ipr, find_link(ipr, name) as (dp, idx, link):
        link.mac = _mac(ipr.link("get", index=link.ifindex)[0])
        dp.put_link(idx, link)
        for index in _underlay.indexes(link):
            underlay = ipr.link("get", index=index)[0]
            dp.maps["underlays"].update(u32(index), _underlay_entry(underlay))


def _mac(device: Any) -> Any:
    return m.Mac(*bytes.fromhex(device.get_attr("IFLA_ADDRESS").replace(":", "")))


def _underlay_entry(device: Any) -> bytes:
    return m.Underlay(mtu=device.get_attr("IFLA_MTU")).raw()


def take_apart(ipr: IPRoute, dp: Datapath, idx: int, link: Any) -> None:
    """Takes an attached link's keys back and its hooks off."""
    link.flags |= m.LINK_HALF
    given = take_keys_back(dp, idx, link)
    shared = {device for i, o in dp.links().items() if i != idx for device in _underlay.indexes(o)}
    if given and not shared.issuperset(_underlay.indexes(link)):
        _let_bounce(dp, given)
    dp.unhook_link(ipr, link.ifindex)
    dp.drop_link(idx)
    for index in _underlay.indexes(link):
        dp.release_underlay(ipr, index)


def _let_bounce(dp: Datapath, given: list[Any]) -> None:
    """Waits until nothing encoded arrives any more: without the hooks it would be lost.

    What does arrive bounces, which stops its sender as well if the message that took the key back was
    lost. Waits for a second at most: a path that does not bring bounces back ends with the leases.
    """
    end = time.monotonic() + _PATIENCE
    before = -1
    while (now := dp.stats(0)["bounce_tx"]) != before and time.monotonic() < end:
        if before >= 0:
            withdraw(dp.conf(), given)
        before = now
        time.sleep(_QUIET)


def _drop_spoilt(ipr: IPRoute, dp: Datapath, ifindex: int, name: str) -> None:
    """Clears away what is left of a link if others have removed its hooks. Raises InputError if not."""
    for idx, link in dp.links().items():
        if link.ifindex == ifindex and not link.flags & m.LINK_HALF:
            if whole(ipr, link):
                raise InputError("name", f'"{name}" is an xmasq link already')
            take_apart(ipr, dp, idx, link)


def whole(ipr: IPRoute, link: Any) -> bool:
    """Whether all hooks of a link are in place."""
    family = ipaddress.ip_address(bytes(link.local)).version

    def there(ifindex: int) -> set[str]:
        return {f.program for f in filters(ipr, ifindex) if f.family == family}

    own = {ENCODE, ARRIVE, *(METADATA if link.flags & m.LINK_EXTERNAL else ())}
    return own <= there(link.ifindex) and all({IN, OUT} <= there(index) for index in _underlay.indexes(link))


def _request(ipr: IPRoute, device: Any, local: IPAddress | None, dev: tuple[str, ...]) -> _Request:
    """What create_link would have been asked for, had it made the device. Raises InputError."""
    name, data = device.get_attr("IFLA_IFNAME"), _attributes(device)
    return _Request(
        name,
        m.VNI_ANY if data.get_attr("IFLA_VXLAN_COLLECT_METADATA") else data.get_attr("IFLA_VXLAN_ID"),
        _local(name, data, local),
        _lower(ipr, name, data, dev),
        None,
        data.get_attr("IFLA_VXLAN_PORT"),
        None,
        None,
        bool(data.get_attr("IFLA_VXLAN_LEARNING")),
        _hold.LEASE_DEFAULT_MS,
        None,
        None,
        None,
    )


def _attributes(device: Any) -> Any:
    """The vxlan attributes of a device that can be a link. Raises InputError."""
    name = device.get_attr("IFLA_IFNAME")
    kind = _dev.kind(device)
    data = _data(device) if kind == "vxlan" else None
    if data is None:
        raise InputError("name", f'"{name}" is no vxlan device{f" but of the type {kind}" if kind else ""}')
    for option in _vxlan.OPTIONS:
        if option.name == "external":
            continue
        if option.refused and data.get_attr(f"IFLA_{option.attribute.upper()}"):
            raise InputError("name", f'"{name}" has {option.name}: {option.refused}')
    if device.get_attr("IFLA_LINK_NETNSID") is not None:
        raise InputError("name", f'"{name}" sends through another network namespace')
    return data


def _check_external(name: str, local: IPAddress, idx: int) -> None:
    """Checks what a device in external (collect metadata) mode needs. Raises InputError."""
    if local.version != 4:
        raise InputError("local", f'"{name}" is in external mode, which needs an IPv4 address, not {local}')
    if idx >= m.MAX_EXTERNAL:
        raise InputError(
            "name", f'"{name}" is in external mode: no more than {m.MAX_EXTERNAL - 1} links then'
        )
    try:
        known = b"\0local_ipv4\0" in Path("/sys/kernel/btf/vmlinux").read_bytes()
    except OSError:
        known = False
    if not known:
        text = f'"{name}" is in external mode, and this kernel lets no program say where a packet came from'
        raise InputError("name", f"{text} (Linux 6.0)")


def _local(name: str, data: Any, given: IPAddress | None) -> IPAddress:
    """The VTEP address. Raises InputError."""
    own = data.get_attr("IFLA_VXLAN_LOCAL") or data.get_attr("IFLA_VXLAN_LOCAL6")
    if own is None and given is None:
        raise InputError("local", f'missing; "{name}" has no local address, so name the VTEP address')
    if own is not None and given is not None and str(given) != own:
        raise InputError("local", f'{given} is not the local address of "{name}", which is {own}')
    local = given or _ip("local", own)
    family = 6 if data.get_attr("IFLA_VXLAN_LOCAL6") or data.get_attr("IFLA_VXLAN_GROUP6") else 4
    if local.version != family:
        raise InputError("local", f'{local} does not fit "{name}", whose underlay is IPv{family}')
    return local


def _lower(ipr: IPRoute, name: str, data: Any, given: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the underlay devices as far as they are known. Raises InputError."""
    index = data.get_attr("IFLA_VXLAN_LINK")
    lower = device_names(ipr).get(index) if index else None
    if lower is None:
        return given
    if given and given != (lower,):
        raise InputError("dev", f'"{name}" sends through {lower}; allowed is only that one')
    return (lower,)
