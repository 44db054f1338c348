# SPDX-License-Identifier: Apache-2.0
"""Creating, changing, listing and deleting xmasq links in the present network namespace.

An xmasq link is a vxlan device that has our programs on its hooks (docs/architecture.md). All that
is ordinary about it stays with `ip` and `bridge`.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kmod_ebpf import maps as m

from . import _device as _dev
from . import _hold, _netlink, _offload, _underlay, _vxlan
from ._attr import reader
from ._datapath import Datapath, api, api_iterator, require_root, said, u32
from ._errors import InputError, XmasqError
from ._hooks import has_tcx
from ._model import Link
from ._netns import Netns, locked
from ._stats import statistics
from ._wire import BOUNCE, MARK, SEG_BITS
from ._withdraw import withdraw

_netlink.register()
VNI_MAX = (1 << 24) - 1
MTU_MIN = 68
PORT = 4789
KEY_BITS_MAX = 13
_OVERHEAD = {4: 50, 6: 70}  # outer IP, UDP and VXLAN header, inner Ethernet header
FLOWS_MIN, FLOWS_MAX = 1024, 1 << 20
_GEN_STRIDE = 1 << 16  # user space steps the generation by more than the datapath does meanwhile
# In the order of `ip` (iproute2, ip/ipaddress.c, print_link_flags).
_FLAGS = {
    0x8: "LOOPBACK",
    0x2: "BROADCAST",
    0x10: "POINTOPOINT",
    0x1000: "MULTICAST",
    0x80: "NOARP",
    0x200: "ALLMULTI",
    0x100: "PROMISC",
    0x1: "UP",
    0x10000: "LOWER_UP",
}
_RUNNING = 0x40
#: These belong to the host: a bounce names no VNI, nor does what was sanitised.
HOST_COUNTERS = (
    "bounce_tx",
    "bounce_rx",
    "stray",
    "path_off",
    "peer_gone",
    "icmp_stray",
    "sanitised",
    "ctl_bad",
    "ctl_version",
)


IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class _Request:
    """What create_link was asked for, checked as far as it can be without the kernel."""

    name: str
    vni: int
    local: IPAddress
    dev: tuple[str, ...]
    remote: IPAddress | None
    port: int
    mtu: int | None
    address: str | None
    learning: bool
    lease_ms: int
    secret: bytes | None
    seg_bits: int | None
    key_bits: int | None
    mark: int | None = None
    bounce: int | None = None
    flows: int | None = None
    fastpath: bool = True
    vxlan: Mapping[str, Any] = field(default_factory=dict)


def _in_range(argument: str, value: int, low: int, high: int, unit: str = "") -> int:
    if not low <= value <= high:
        raise InputError(argument, f"{value} is out of range, allowed is {low} to {high}{unit}")
    return value


def check_name(name: str) -> str:
    """A device name as the kernel wants it."""
    return _dev.check_name("name", name)


def _ip(argument: str, text: str, *, group: bool = False) -> IPAddress:
    """An address of a host; group: or of a multicast group."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise InputError(argument, f'"{text}" is not an IP address') from None
    if group and address.is_multicast:
        return address
    if address.is_multicast or address.is_unspecified or address.is_loopback or int(address) == 0xFFFFFFFF:
        raise InputError(argument, f"{text} is not a unicast address of a host")
    if isinstance(address, ipaddress.IPv6Address):
        if address.is_link_local:
            raise InputError(
                argument, f"{text} is a link-local address; a VTEP needs one that is good in all the underlay"
            )
        if address.ipv4_mapped:
            raise InputError(argument, f"{text} is an IPv4 address; allowed is {address.ipv4_mapped}")
    return address


def _remote(text: str, dev: Sequence[str], local: IPAddress) -> IPAddress:
    address = _ip("remote", text, group=True)
    if address.version != local.version:
        raise InputError("remote", f"{text} must be an IPv{local.version} address, as the local one is")
    if address.is_multicast and len(dev) != 1:
        raise InputError("remote", f'{text} is a multicast group, which needs "dev" with it, one device')
    return address


def _port(port: int) -> int:
    """The tunnel's UDP port; 0 means what Linux takes by itself, as with `ip`."""
    return _in_range("dstport", port, 0, 65535) or _vxlan.default_port()


def _code_point(argument: str, value: int | None, key_bits: int | None) -> int | None:
    """A DSCP for our packets. Raises InputError."""
    if value is None:
        return None
    if not 0 <= value <= 63 or value & 3 != 3:
        raise InputError(
            argument,
            f"{value} is not a code point for local use (RFC 2474, pool 2): 3, 7, 11 and so on to 63",
        )
    if key_bits and value > 7:
        raise InputError(argument, f"{value} leaves no room for key bits in DSCP: with key-bits, 3 or 7")
    return value


def _check_code_points(mark: int | None, bounce: int | None) -> None:
    mark, bounce = MARK if mark is None else mark, BOUNCE if bounce is None else bounce
    if mark == bounce:
        raise InputError(
            "mark" if bounce == BOUNCE else "bounce", f"mark and bounce must differ, and both are {mark}"
        )


def check_lease(lease_ms: int) -> int:
    """A lease in ms."""
    return _in_range("lease", lease_ms, _hold.LEASE_MIN_MS, _hold.LEASE_MAX_MS, " ms")


def check_secret(secret: bytes | None) -> bytes | None:
    """A shared secret, ready for use."""
    if secret is not None and len(secret) != 16:
        raise InputError("secret", f"has {len(secret)} bytes, 16 are needed")
    return secret


def check_bits(
    seg_bits: int | None, key_bits: int | None, local: IPAddress | None = None
) -> tuple[int | None, int | None]:
    """Segment bits and further key bits, as far as they are given. local: the VTEP address, if known."""
    if local is not None and local.version == 6:
        for word, value in (("segment-bits", seg_bits), ("key-bits", key_bits)):
            if value is not None:
                raise InputError(
                    word, f"is for IPv4 underlays; over IPv6 ({local}) there are 16,383 keys anyway"
                )
    if seg_bits is not None:
        _in_range("segment-bits", seg_bits, 4, 8)
    if key_bits is not None:
        _in_range("key-bits", key_bits, 0, 3)
    if 16 - (seg_bits or SEG_BITS) + (key_bits or 0) > KEY_BITS_MAX:
        raise InputError(
            "key-bits", f"{key_bits} makes keys longer than the {KEY_BITS_MAX} bits there is room for"
        )
    return seg_bits, key_bits


def device_names(ipr: IPRoute) -> dict[int, str]:
    """Device names by index. The C library asks much faster than a dump of all there is to say."""
    return dict(socket.if_nameindex())


def _device_name(index: int) -> str:
    """For one device, where device_names would list a thousand."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"


def _device(ipr: IPRoute, name: str) -> Any | None:
    return _dev.find(ipr, name)


def _check_against_kernel(ipr: IPRoute, want: _Request, underlays: Sequence[Any], dp: Datapath | None) -> int:
    """Checks what needs a look at the kernel; returns the link's MTU."""
    for device in underlays:
        _offload.check(device, want.local.version)
    mtu = _mtu(want, _underlay.mtu(underlays))
    if _device(ipr, want.name) is not None:
        raise InputError("name", f'a device "{want.name}" exists already')
    check_against_links(want, dp)
    return int(mtu)


def check_against_links(want: _Request, dp: Datapath | None) -> None:
    """Checks what all links of a VTEP address, or of the namespace, have in common."""
    for link in dp.links().values() if dp else ():
        if bytes(link.local) != want.local.packed:
            continue
        port = int.from_bytes(bytes(link.port), "big")
        if port != want.port:
            raise InputError("dstport", f"links at {want.local} share one port, and it is {port} already")
        if link.vni == want.vni:
            raise InputError("id", f"VNI {want.vni} has a link at {want.local} already")
    if dp:
        conf = dp.conf()
        for word, asked, have in (
            ("segment-bits", want.seg_bits, conf.seg_bits),
            ("key-bits", want.key_bits, conf.xbits),
            ("mark", want.mark, conf.mark),
            ("bounce", want.bounce, conf.bounce),
            ("flows", want.flows, dp.maps["flows"].max_entries),
        ):
            if asked is not None and asked != have:
                raise InputError(word, f"all links of a host have the same, and it is {have} already")


def _mtu(want: _Request, underlay: int) -> int:
    """The link's MTU."""
    most = least_room = underlay
    overhead = _OVERHEAD[want.local.version]
    if want.remote and want.remote.is_multicast:
        most = least_room = underlay - overhead  # the kernel takes no more where "dev" is bound
    elif want.vxlan.get("vxlan_df"):
        least_room = underlay - overhead  # or the fallback could not take a full packet
    if want.mtu is None:
        return least_room
    why = "the underlay's MTU" if most == underlay else "the underlay's MTU, less a VXLAN header"
    return _in_range("mtu", want.mtu, MTU_MIN, most, f" ({why})")


def _create_device(
    ipr: IPRoute, want: _Request, mtu: int, underlays: Sequence[Any], creation: Mapping[str, Any]
) -> int:
    six = "6" if want.local.version == 6 else ""
    extra: dict[str, Any] = {f"vxlan_local{six}": str(want.local)}
    if want.remote:
        extra[f"vxlan_group{six}"] = str(want.remote)
        if want.remote.is_multicast:
            extra["vxlan_link"] = underlays[0]["index"]
    if want.address:
        extra["address"] = want.address
    try:
        ipr.link(
            "add",
            ifname=want.name,
            kind="vxlan",
            mtu=mtu,
            vxlan_id=want.vni,
            vxlan_port=want.port,
            vxlan_learning=int(want.learning),
            **extra,
            **want.vxlan,
            **creation,
        )
    except NetlinkError as e:
        if e.code == errno.EEXIST:
            text = f"VNI {want.vni} with port {want.port} is in use by another vxlan device of this host"
            raise InputError("id", text) from e
        if e.code == errno.EOPNOTSUPP:
            raise InputError("kernel", "this one has no vxlan devices (CONFIG_VXLAN)") from e
        raise XmasqError(f"the kernel refuses the device: {said(e)}") from e
    device = _device(ipr, want.name)
    if device is None:
        raise XmasqError(f'the device "{want.name}" went away at once')
    _vxlan.check(want.vxlan, _data(device))
    return int(device["index"])


def _data(device: Any) -> Any:
    """The IFLA_INFO_DATA of a vxlan device."""
    return device.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")


def _find(ipr: IPRoute, family: int | None = None) -> list[Datapath]:
    """The datapaths. family: the only one that is wanted; else those that there are vxlan devices for."""
    if has_tcx():  # where a look at each device costs little; and the first ones are the likely underlay
        return Datapath.find_all(ipr, list(range(1, 9)), [family] if family else [4, 6])
    vxlans: dict[int, list[int]] = {4: [], 6: []}
    for msg in ipr.get_links(kind="vxlan"):
        data = _data(msg)
        six = data is not None and (data.get_attr("IFLA_VXLAN_LOCAL6") or data.get_attr("IFLA_VXLAN_GROUP6"))
        vxlans[6 if six else 4].append(msg["index"])
    wanted = [family] if family else [f for f in vxlans if vxlans[f]] or [*vxlans]
    return Datapath.find_all(ipr, [index for f in wanted for index in vxlans[f][:8]], wanted)


def _reap(ipr: IPRoute, dp: Datapath) -> None:
    """Forgets links whose devices were deleted without us, and what a killed command left behind."""
    alive = device_names(ipr)
    for idx, link in dp.links().items():
        if link.ifindex not in alive:
            take_keys_back(dp, idx, link)
            dp.drop_link(idx)
        elif link.flags & m.LINK_HALF and link.flags & m.LINK_ATTACHED:
            dp.unhook_link(ipr, link.ifindex)
            dp.drop_link(idx)
    for underlay, _ in list(dp.values("underlays")):
        dp.release_underlay(ipr, underlay)


def usable(
    ipr: IPRoute,
    close: contextlib.ExitStack,
    family: int,
    first: Callable[[Datapath], None] | None = None,
) -> Datapath | None:
    """The datapath that a further link shares, put in order; None if there is none yet.

    family: of its VTEP address. first: gets the datapath as it was found.
    """
    found = _find(ipr, family)
    if not found:
        return None
    (dp,) = found
    close.callback(dp.close)
    if first is not None:
        first(dp)
    _reap(ipr, dp)
    if not dp.links():
        return None
    return dp if dp.whole else _renew(ipr, dp, close)


def _renew(ipr: IPRoute, dp: Datapath, close: contextlib.ExitStack) -> Datapath:
    """A new datapath with the links of one that has lost programs because others removed a hook."""
    conf = dp.conf()
    flows = dp.maps["flows"].max_entries if "flows" in dp.maps else None
    new = Datapath.load(conf.seg_bits, conf.xbits, conf.mark, conf.bounce, flows, dp.family)
    close.callback(new.close)
    devices = {msg["index"]: msg for msg in ipr.get_links()}
    with contextlib.ExitStack() as undo:
        for idx, link in dp.links().items():
            if underlays := [devices[i] for i in _underlay.indexes(link) if i in devices]:
                put_hooks(ipr, new, idx, link, underlays, undo)
        undo.pop_all()
    return new


def _family(device: Any) -> int | None:
    """The family of a vxlan device's own VTEP address, if it has one."""
    data = _data(device) if _dev.kind(device) == "vxlan" else None
    if data is None:
        return None
    return 4 if data.get_attr("IFLA_VXLAN_LOCAL") else 6 if data.get_attr("IFLA_VXLAN_LOCAL6") else None


@contextlib.contextmanager
def find_links(ipr: IPRoute, name: str | None = None) -> Iterator[list[tuple[Datapath, dict[int, Any]]]]:
    """The datapaths, one for each family of VTEP addresses, with their links by index.

    name: only the datapath of this link, and only this link. Raises InputError.
    """
    index = family = None
    if name is not None:
        device = _device(ipr, name)
        if device is None:
            raise InputError("name", f'there is no device "{name}"')
        index, family = device["index"], _family(device)
    with contextlib.ExitStack() as close:
        found = []
        for dp in _find(ipr, family):
            close.callback(dp.close)
            links = dp.links()
            if index is not None:
                links = {idx: link for idx, link in links.items() if link.ifindex == index}
                if not links:
                    continue
            found.append((dp, links))
        if index is not None and not found:
            raise InputError("name", f'"{name}" is not an xmasq link')
        yield found


@contextlib.contextmanager
def find_link(ipr: IPRoute, name: str) -> Iterator[tuple[Datapath, int, Any]]:
    """A link, with its index and its datapath. Raises InputError."""
    with find_links(ipr, name) as ((dp, links),):
        ((idx, link),) = links.items()
        yield dp, idx, link


@api
def create_link(
    name: str,
    *,
    vni: int,
    local: str,
    dev: str | Sequence[str] | None = None,
    remote: str | None = None,
    port: int = PORT,
    mtu: int | None = None,
    address: str | None = None,
    learning: bool = True,
    lease_ms: int = _hold.LEASE_DEFAULT_MS,
    up: bool = False,
    secret: bytes | None = None,
    seg_bits: int | None = None,
    key_bits: int | None = None,
    mark: int | None = None,
    bounce: int | None = None,
    flows: int | None = None,
    fastpath: bool = True,
    vxlan: Mapping[str, Any] | None = None,
    device: Mapping[str, Any] | None = None,
    netns: Netns | None = None,
) -> Link:
    """Creates an xmasq link, all of it or nothing.

    vni: 0 to 2^24-1. local: the VTEP address, one of this host's. dev: the devices with the
    underlay hooks, one or several ("eth0,eth1"), by default those that own local; if that is lo, those
    that lead to gateways. remote: where frames go that the FDB does not know, a
    host or (with dev) a multicast group. port: 0 for Linux's own default. mtu: at most, and by
    default, the underlay's; 50 less for a group. lease_ms: 1,000 to 60,000. secret: 16 bytes that
    both ends share. fastpath: whether it is on from the start.

    These belong to the whole namespace, and its first link decides: seg_bits: S, 4 to 8. key_bits: 0
    to 3 further key bits in DSCP. mark, bounce: DSCP of our packets (docs/protocol.md). flows: how
    many flows there may be, 1,024 to 1,048,576.

    vxlan: options of the vxlan device by the words of `ip link help vxlan`, such as {"ttl": 64,
    "proxy": True, "srcport": (5000, 6000)}. device: settings of any device by the words of `ip link
    set`, such as {"alias": "to rack 7", "master": "br0", "multicast": False}; "devgroup" for its group.
    netns: where, by default the calling thread's network namespace.

    Raises InputError for a bad argument, XmasqError if the kernel refuses.
    """
    check_name(name)
    vtep = _ip("local", local)
    devices = _underlay.names_of(dev)
    want = _Request(
        name,
        _in_range("id", vni, 0, VNI_MAX),
        vtep,
        devices,
        _remote(remote, devices, vtep) if remote else None,
        _port(port),
        mtu,
        _dev.lladdr("address", address) if address else None,
        learning,
        check_lease(lease_ms),
        check_secret(secret),
        *check_bits(seg_bits, key_bits, vtep),
        _code_point("mark", mark, key_bits),
        _code_point("bounce", bounce, key_bits),
        None if flows is None else _in_range("flows", flows, FLOWS_MIN, FLOWS_MAX),
        fastpath,
        _vxlan.attributes(vxlan or {}, vtep),
    )
    _check_code_points(mark, bounce)
    require_root()
    with locked(), IPRoute(ext_ack=True) as ipr, contextlib.ExitStack() as close:
        dp = usable(ipr, close, vtep.version)
        underlays = _underlay.choose(ipr, want.local, want.dev)
        mtu = _check_against_kernel(ipr, want, underlays, dp)
        settings = _dev.attributes(ipr, {**(device or {}), **({"up": True} if up else {})}, exists=False)
        if dp is None:
            dp = Datapath.load(want.seg_bits, want.key_bits, want.mark, want.bounce, want.flows, vtep.version)
            close.callback(dp.close)
        _hold.live(want.lease_ms, vtep.version)
        with contextlib.ExitStack() as undo:
            ifindex = _build(ipr, dp, want, underlays, mtu, settings.creation, undo)
            _dev.apply(ipr, ifindex, settings)
            made = link_of(ipr, dp, name)
            undo.pop_all()
    return made


def _build(
    ipr: IPRoute,
    dp: Datapath,
    want: _Request,
    underlays: Sequence[Any],
    mtu: int,
    creation: Mapping[str, Any],
    undo: contextlib.ExitStack,
) -> int:
    """Device, hooks and map entries, in an order in which each state on the way is harmless.

    Returns the device's index.
    """
    idx = free_index(dp)
    undo.callback(_remove_device, ipr, want)
    ifindex = _create_device(ipr, want, mtu, underlays, creation)
    device = ipr.link("get", index=ifindex)[0]
    enter_link(ipr, dp, idx, want, device, underlays, 0, undo)
    return ifindex


def free_index(dp: Datapath) -> int:
    """An index that no link has. Raises XmasqError."""
    used = dp.links()
    idx = next((i for i in range(1, dp.maps["links"].max_entries) if i not in used), None)
    if idx is None:
        raise XmasqError(f"there are {len(used)} xmasq links here already, and no room for more")
    return idx


def enter_link(
    ipr: IPRoute,
    dp: Datapath,
    idx: int,
    want: _Request,
    device: Any,
    underlays: Sequence[Any],
    flags: int,
    undo: contextlib.ExitStack,
) -> None:
    """Makes a link of a vxlan device. flags: further LINK_ flags."""
    old: Any = dp.types.Link.parse(dp.maps["links"].lookup(u32(idx)) or b"")
    link: Any = dp.types.Link(
        ifindex=device["index"],
        vni=want.vni,
        local=dp.types.Addr(*want.local.packed),
        port=m.Be16(*want.port.to_bytes(2, "big")),
        mac=m.Mac(*bytes.fromhex(device.get_attr("IFLA_ADDRESS").replace(":", ""))),
        flags=flags
        | (m.LINK_UP if want.fastpath else 0)
        | (m.LINK_LEARNING if want.learning else 0)
        | (m.LINK_SECRET if want.secret is not None else 0),
        lease_ms=want.lease_ms,
        guard_ms=_hold.guard_ms(want.lease_ms),
        tx_gen=old.tx_gen + 1,
        rx_gen=old.rx_gen + 1,
        underlays=m.Underlays(*(one["index"] for one in underlays)),
    )
    if want.secret is not None:
        link.secret = m.Secret.from_buffer_copy(want.secret)
    put_hooks(ipr, dp, idx, link, underlays, undo)


def put_hooks(
    ipr: IPRoute, dp: Datapath, idx: int, link: Any, underlays: Sequence[Any], undo: contextlib.ExitStack
) -> None:
    """Enters a link into the maps, and sees to it that it has its hooks; before, its fast path is off."""
    flags = link.flags & ~m.LINK_HALF
    link.flags = (flags | m.LINK_HALF) & ~m.LINK_UP
    for device in underlays:
        dp.hook_underlay(ipr, device["index"], device.get_attr("IFLA_MTU"), undo)
    dp.add_link(idx, link, undo)
    dp.hook_link(ipr, link.ifindex, undo, external=bool(link.flags & m.LINK_EXTERNAL))
    link.flags = flags
    dp.put_link(idx, link)


def _remove_device(ipr: IPRoute, want: _Request) -> None:
    """Undoes _create_device, if it came so far: by its name and VNI, the index may not be known."""
    device = _device(ipr, want.name)
    if device is None:
        return
    info = device.get_attr("IFLA_LINKINFO")
    data = info.get_attr("IFLA_INFO_DATA") if info else None
    if data and data.get_attr("IFLA_VXLAN_ID") == want.vni:
        ipr.link("del", index=device["index"])


@api
def delete_link(name: str, *, netns: Netns | None = None) -> None:
    """Deletes an xmasq link; the last one takes the datapath along. Raises InputError, XmasqError."""
    require_root()
    with locked(), IPRoute() as ipr, find_link(ipr, name) as (dp, idx, link):
        if link.flags & m.LINK_ATTACHED:
            raise InputError(
                "name",
                f'"{name}" was attached and is not ours to delete; allowed is "xmasq detach {name}"',
            )
        take_keys_back(dp, idx, link)
        try:
            ipr.link("del", index=link.ifindex)
        except NetlinkError as e:
            if e.code != errno.ENODEV:
                raise XmasqError(f"the kernel does not delete {name}: {os.strerror(e.code)}") from e
        dp.drop_link(idx)
        for index in _underlay.indexes(link):
            dp.release_underlay(ipr, index)
        _reap(ipr, dp)
        if not dp.links():
            _hold.removed(dp.family)


@api
def prune_links(*, netns: Netns | None = None) -> int:
    """Takes away what is left of links whose devices others have deleted, such as `ip link del`.

    The last one takes the datapath along. Returns how many there were. Raises InputError, XmasqError.
    """
    require_root()
    gone = 0
    with locked(), IPRoute() as ipr, contextlib.ExitStack() as close:
        for dp in Datapath.find_all(ipr, [], [4, 6]):
            close.callback(dp.close)
            before = len(dp.links())
            _reap(ipr, dp)
            gone += before - len(dp.links())
            if before and not dp.links():
                _hold.removed(dp.family)
    return gone


def take_keys_back(dp: Datapath, idx: int, link: Any) -> list[Any]:
    """Ends the fast path of a link that is about to go; returns the keys that it had given."""
    now = _hold.now_ns()
    given = [s for _, _, s in dp.slots(now) if s.link == idx and s.rx_gen == link.rx_gen and s.valid > now]
    # From here on its keys bounce, and until the hooks go nothing encoded reaches this host's sockets.
    link.flags &= ~m.LINK_UP
    link.rx_gen += 1
    dp.put_link(idx, link)
    withdraw(dp.conf(), given)
    return given


@api
def set_link(
    name: str,
    *,
    up: bool | None = None,
    mtu: int | None = None,
    address: str | None = None,
    new_name: str | None = None,
    remote: str | None = None,
    learning: bool | None = None,
    fastpath: bool | None = None,
    lease_ms: int | None = None,
    secret: bytes | None = None,
    vxlan: Mapping[str, Any] | None = None,
    device: Mapping[str, Any] | None = None,
    netns: Netns | None = None,
) -> None:
    """Changes a running link, all of it or nothing. None leaves a setting as it is.

    fastpath False: all traffic takes the fallback, visible to captures. mtu: up to the underlay's. A
    new secret ends all keys that were given under the old one. new_name: the kernel wants the link
    down for it before Linux 6.2. remote, learning, vxlan, device: as for create_link, as far as the
    kernel can change them.

    Raises InputError, XmasqError.
    """
    if lease_ms is not None:
        check_lease(lease_ms)
    check_secret(secret)
    require_root()
    with locked(), IPRoute(ext_ack=True) as ipr, find_link(ipr, name) as (dp, idx, link):
        now_data = _data(ipr.link("get", index=link.ifindex)[0])
        kind = _changes(now_data, link, remote, learning, vxlan or {})
        settings = _dev.attributes(ipr, {**(device or {}), **({} if up is None else {"up": up})}, exists=True)
        if mtu is not None:
            underlay = _underlay.mtu(ipr.link("get", index=i)[0] for i in _underlay.indexes(link))
            bound = now_data.get_attr("IFLA_VXLAN_LINK")
            most = underlay - _OVERHEAD[dp.family] if bound else underlay
            settings.later["mtu"] = _in_range("mtu", mtu, MTU_MIN, most, " (by the underlay's MTU)")
        if address is not None:
            settings.later["address"] = _dev.lladdr("address", address)
        if new_name is not None and new_name != name:
            settings.later["ifname"] = check_name(new_name)
            if _device(ipr, new_name) is not None:
                raise InputError("name", f'a device "{new_name}" exists already')
        if lease_ms is not None:
            _hold.live(lease_ms, dp.family)
        # The kernel first: it may refuse, and what follows cannot fail.
        with contextlib.ExitStack() as undo:
            if kind:
                undo.callback(
                    ipr.link, "set", index=link.ifindex, kind="vxlan", **_vxlan.present(now_data, kind)
                )
                ipr.link("set", index=link.ifindex, kind="vxlan", **kind)
                _vxlan.check(kind, _data(ipr.link("get", index=link.ifindex)[0]))
            _dev.apply(ipr, link.ifindex, settings)
            undo.pop_all()
        if fastpath is not None:
            link.flags = link.flags | m.LINK_UP if fastpath else link.flags & ~m.LINK_UP
            if not fastpath:
                link.rx_gen += 1
        if lease_ms is not None:
            link.lease_ms, link.guard_ms = lease_ms, _hold.guard_ms(lease_ms)
        if secret is not None:
            link.flags |= m.LINK_SECRET
            link.secret = m.Secret.from_buffer_copy(secret)
            link.rx_gen += 1
        if learning is not None:
            link.flags = link.flags | m.LINK_LEARNING if learning else link.flags & ~m.LINK_LEARNING
        if address is not None:
            link.mac = m.Mac(*bytes.fromhex(address.replace(":", "")))
        if kind or any(x is not None for x in (fastpath, lease_ms, secret, address)):
            link.tx_gen += _GEN_STRIDE
            dp.put_link(idx, link)


def _changes(
    data: Any, link: Any, remote: str | None, learning: bool | None, vxlan: Mapping[str, Any]
) -> dict[str, Any]:
    """What to change of the vxlan device. data: its IFLA_INFO_DATA."""
    local = ipaddress.ip_address(bytes(link.local))
    kind = _vxlan.known(_vxlan.attributes(vxlan, local, running=True), data)
    if remote is not None:
        dev = ("its own",) if data.get_attr("IFLA_VXLAN_LINK") else ()
        kind["vxlan_group6" if local.version == 6 else "vxlan_group"] = str(_remote(remote, dev, local))
    if learning is not None:
        kind["vxlan_learning"] = int(learning)
    return kind


def _stats(dp: Datapath, idx: int, host: Mapping[str, int]) -> dict[str, int]:
    stats = dp.stats(idx)
    stats["fallback"] = sum(v for k, v in stats.items() if k.startswith("fb_"))
    stats["bounced"] = stats["restored"]
    for name in HOST_COUNTERS:
        stats[name] += host[name]
    return stats


def _info(device: Any, link: Any, names: Callable[[int], str]) -> dict[str, Any]:
    """The device as `ip -j -d link show` would print it."""
    flags = device["flags"]
    words = ["NO-CARRIER"] if flags & 1 and not flags & _RUNNING else []
    attr = reader(device)
    info_data = attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
    vxlan = reader(info_data)
    data: dict[str, Any] = {} if link.flags & m.LINK_EXTERNAL else {"id": link.vni}
    local = ipaddress.ip_address(bytes(link.local))
    six = "6" if local.version == 6 else ""  # as `ip` calls them
    if remote := vxlan(f"IFLA_VXLAN_GROUP{six}"):
        data[f"remote{six}"] = remote
    data |= {
        f"local{six}": str(local),
        "dev": ",".join(map(names, _underlay.indexes(link))),
        "port": int.from_bytes(bytes(link.port), "big"),
        "learning": bool(vxlan("IFLA_VXLAN_LEARNING")),
        **_vxlan.shown(info_data),
        "lease": link.lease_ms / 1000,
        "fastpath": bool(link.flags & m.LINK_UP),
        "secret": bool(link.flags & m.LINK_SECRET),
        "attached": bool(link.flags & m.LINK_ATTACHED),
    }
    info: dict[str, Any] = {
        "ifindex": device["index"],
        "ifname": attr("IFLA_IFNAME"),
        "flags": words + [name for bit, name in _FLAGS.items() if flags & bit],
        "mtu": attr("IFLA_MTU"),
        "qdisc": attr("IFLA_QDISC"),
        "operstate": attr("IFLA_OPERSTATE"),
        "linkmode": "DEFAULT",
        "group": _dev.group_name(attr("IFLA_GROUP") or 0),
        "txqlen": attr("IFLA_TXQLEN"),
        "link_type": "ether",
        "address": attr("IFLA_ADDRESS"),
        "broadcast": attr("IFLA_BROADCAST"),
        "promiscuity": attr("IFLA_PROMISCUITY"),
        "min_mtu": attr("IFLA_MIN_MTU"),
        "max_mtu": attr("IFLA_MAX_MTU"),
        "linkinfo": {"info_kind": "xmasq", "info_data": data},
    }
    if attr("IFLA_IFALIAS"):
        info["ifalias"] = attr("IFLA_IFALIAS")
    props = attr("IFLA_PROP_LIST")
    if props:
        info["altnames"] = props.get_attrs("IFLA_ALT_IFNAME")
    if attr("IFLA_MASTER"):
        info["master"] = names(attr("IFLA_MASTER"))
    return info


@api
def links(name: str | None = None, *, netns: Netns | None = None) -> list[Link]:
    """The namespace's xmasq links with their counters, by device index. Raises InputError."""
    return sorted(_links(name), key=lambda link: link.index)


@api_iterator
def iter_links(name: str | None = None, *, netns: Netns | None = None) -> Iterator[Link]:
    """The same one by one, in the order in which the kernel tells of them. Raises InputError."""
    yield from _links(name)


def _links(name: str | None) -> Iterator[Link]:
    with IPRoute() as ipr, find_links(ipr, name) as found:
        if not found:
            return
        table = device_names(ipr) if name is None else {}
        hosts = [dp.stats(0) for dp, _ in found]
        by_index = {
            link.ifindex: (dp, idx, link, host)
            for (dp, links), host in zip(found, hosts, strict=True)
            for idx, link in links.items()
        }
        for device in ipr.get_links() if name is None else [_device(ipr, name)]:
            if device is not None and device["index"] in by_index:
                # The table, as between two rows the caller may be in another namespace.
                names = _device_name if name is not None else lambda i: table.get(i, f"if{i}")
                yield _link(device, *by_index[device["index"]], names)


def link_of(ipr: IPRoute, dp: Datapath, name: str) -> Link:
    """A link of a datapath that is at hand. Raises XmasqError if it has just gone."""
    device = _device(ipr, name)
    idx = dp.maps["link_ids"].lookup(u32(device["index"])) if device is not None else None
    if idx is None:
        raise XmasqError(f'the link "{name}" went away at once')
    raw = dp.maps["links"].lookup(idx)
    assert raw is not None  # an array map has all its keys
    link = dp.types.Link.parse(raw)
    return _link(device, dp, int.from_bytes(idx, "little"), link, dp.stats(0), _device_name)


def _link(
    device: Any, dp: Datapath, idx: int, link: Any, host: Mapping[str, int], names: Callable[[int], str]
) -> Link:
    info = _info(device, link, names)
    data = info["linkinfo"]["info_data"]
    stats = _stats(dp, idx, host)
    six = "6" if dp.family == 6 else ""
    return Link(
        info["ifname"],
        link.ifindex,
        data.get("id", 0),
        data[f"local{six}"],
        data["dev"],
        data.get(f"remote{six}"),
        data["port"],
        info["mtu"],
        info["address"],
        data["learning"],
        link.lease_ms,
        data["fastpath"],
        data["secret"],
        bool(device["flags"] & 1),
        info,
        stats,
        data["attached"],
        statistics(device, stats),
    )
