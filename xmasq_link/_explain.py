# SPDX-License-Identifier: Apache-2.0
"""Why a flow is encoded, or is not: the conditions of kmod_ebpf/src/encode.h and control.h, one by one."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kmod_ebpf import maps as m

from . import _hold
from ._datapath import Datapath, api
from ._errors import InputError
from ._flow import mac
from ._link import find_link
from ._look import HOOK_HINT, address, device_name, hook_faults
from ._model import Condition, Explanation
from ._netns import Netns
from ._underlay import indexes

_ANY_MAC = "00:00:00:00:00:00"
_NUD_USABLE = 0xC0 | 0x3E  # NOARP, PERMANENT, and what is known or being checked


def _ip(argument: str, text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise InputError(argument, f'"{text}" is not an IP address') from None


def _ago(now: int, then: int) -> str:
    return f"{(now - then) / 1e9:.1f} s ago"


class _Look:
    """One look at the kernel: each method adds conditions."""

    def __init__(self, ipr: IPRoute, dp: Datapath, idx: int, link: Any, source: str, target: str) -> None:
        self.ipr, self.dp, self.idx, self.link = ipr, dp, idx, link
        self.source, self.target = source, target
        self.local = address(link.local)
        self.now = _hold.now_ns()
        self.conditions: list[Condition] = []
        self.device = ipr.link("get", index=link.ifindex)[0]
        self.conf = dp.conf()

    def add(self, name: str, met: bool | None, text: str, hint: str = "") -> bool:
        self.conditions.append(Condition(name, met, text, hint if not met else ""))
        return bool(met)

    def device_is_ready(self) -> None:
        name = self.device.get_attr("IFLA_IFNAME")
        up = bool(self.device["flags"] & 1)
        self.add("link", up, f"{name} is {'up' if up else 'down'}", f"ip link set {name} up")
        on = bool(self.link.flags & m.LINK_UP)
        self.add("fast path", on, "on" if on else "off", f"xmasq link set {name} fastpath on")
        wrong = hook_faults(self.ipr, self.link)
        self.add("hooks", not wrong, "; ".join(wrong) or "all four programs are there, and first", HOOK_HINT)

    def addresses_fit(self) -> None:
        underlay = ipaddress.ip_address(self.local).version
        versions = {ipaddress.ip_address(text).version for text in (self.source, self.target)}
        multicast = ipaddress.ip_address(self.target).is_multicast
        text = f"IPv{underlay} over IPv{underlay}"
        if versions != {underlay}:
            text = f"the link's underlay is IPv{underlay}, and only IPv{underlay} is encoded over it"
        elif multicast:
            text = "the destination is a group"
        self.add("addresses", versions == {underlay} and not multicast, text, "such packets stay in VXLAN")

    def rows(self, table: str) -> Iterator[tuple[Any, Any]]:
        """Entries of a table of flows that are about these addresses on this link."""
        for f, value in self.dp.values(table):
            if f.ifindex == self.link.ifindex and (address(f.sip), address(f.dip)) == (
                self.source,
                self.target,
            ):
                yield f, value

    def target_mac(self) -> str | None:
        """The MAC address that packets to the destination have at the link, if it can be known."""
        for table in ("flows", "solicits"):
            for f, _ in self.rows(table):
                return mac(f.dmac)
        try:
            (route,) = self.ipr.route("get", dst=self.target)
        except (NetlinkError, ValueError):
            return None
        oif = route.get_attr("RTA_OIF")
        via = route.get_attr("RTA_GATEWAY") or self.target
        if oif not in (self.link.ifindex, self.device.get_attr("IFLA_MASTER")):
            return None
        for neighbour in self.ipr.get_neighbours(ifindex=oif):
            if neighbour.get_attr("NDA_DST") == via and neighbour["state"] & _NUD_USABLE:
                return str(neighbour.get_attr("NDA_LLADDR"))
        return None

    def fdb(self, lladdr: str | None) -> list[str]:
        """The peers that the FDB has for a MAC address; by default those that get what it does not know."""
        entries: dict[str, list[str]] = {}
        for entry in self.ipr.get_neighbours(family=socket.AF_BRIDGE, ifindex=self.link.ifindex):
            if entry["ifindex"] == self.link.ifindex and (dst := entry.get_attr("NDA_DST")):
                entries.setdefault(str(entry.get_attr("NDA_LLADDR")), []).append(str(dst))
        return entries.get(lladdr or "") or entries.get(_ANY_MAC, [])

    def peer_is_good(self, live: Any) -> str | None:
        lladdr = self.target_mac()
        if live:
            lladdr = mac(live[0].dmac)
        self.add(
            "destination MAC",
            lladdr is not None or None,
            lladdr or f"not known here: no packet seen, and no neighbour entry leads to {self.target}",
            "send a packet, or look on the container: ip neigh",
        )
        peers = self.fdb(lladdr)
        self.add(
            "FDB",
            bool(peers) or None,
            f"leads to {', '.join(peers)}" if peers else "has no entry for it, and none for unknown ones",
            "bridge fdb show dev " + self.device.get_attr("IFLA_IFNAME"),
        )
        if not peers and not live:
            return None
        peer = address(live[1].peer) if live else peers[0]
        pair = next(
            (
                p
                for _, p in self.dp.values("pairs")
                if (address(p.local), address(p.peer)) == (self.local, peer)
            ),
            None,
        )
        heard = pair.heard if pair else 0
        self.add(
            "peer speaks xmasq",
            bool(heard),
            f"{peer} was heard {_ago(self.now, heard)}" if heard else f"{peer} was never heard to",
            "it may be a plain VXLAN host; or DSCP is cleared on the way; or it does not know "
            "this host: its FDB must have an entry for this one, too",
        )
        off = pair.off_until - self.now if pair else 0
        self.add(
            "path",
            off <= 0,
            f"off for another {off / 1e9:.0f} s" if off > 0 else "no complaints",
            "the path spoils or swallows encoded packets: it rewrites DSCP or IPv4 Identification, "
            "or lets only UDP through",
        )
        return peer

    def route_leads_there(self, peer: str) -> None:
        hooked = indexes(self.link)
        try:
            (route,) = self.ipr.route("get", dst=peer)
            oif = route.get_attr("RTA_OIF")
        except NetlinkError as e:
            self.add("route", False, f"none to {peer}: {errno.errorcode.get(e.code, e.code)}", "ip route")
            return
        met = oif in hooked
        name = device_name(self.ipr, oif)
        self.add(
            "route",
            met,
            f"to {peer} by {name}",
            f"only {' and '.join(device_name(self.ipr, i) for i in hooked)} has the hooks: "
            f"xmasq link add … dev {name}",
        )

    def key_is_there(self, peer: str | None, live: Any) -> bool:
        held = self.conf.tx_hold - self.now
        self.add(
            "hold-down",
            held <= 0,
            f"no key is taken for another {held / 1e9:.1f} s" if held > 0 else "over",
            "the datapath has just started, and keys of the one before may still be under way",
        )
        if live:
            e = live[1]
            left = (e.lease_end - self.now) / 1e9
            self.add("key", True, f"{e.key} of {peer}, for another {left:.1f} s")
            current = bool(e.gen == self.link.tx_gen)
            self.add(
                "vouched for",
                current,
                "the FDB still sends this flow there" if current else "the FDB is being asked",
                "the next packet takes the fallback, and tells",
            )
            mtu = self.device.get_attr("IFLA_MTU")
            self.add(
                "MTU",
                e.mtu >= mtu,
                f"packets of up to {e.mtu} bytes are encoded, the link's MTU is {mtu}",
                "longer ones stay in the fallback: the underlay or the route to the peer has a smaller MTU",
            )
            return current
        self.add("key", False, *self.no_key(peer))
        return False

    def no_key(self, peer: str | None) -> tuple[str, str]:
        """Why there is none."""
        asked = max((s.at for f, s in self.rows("solicits")), default=0)
        expired = any(True for _ in self.rows("flows"))
        text = "the last one has ended" if expired else "none"
        if not asked:
            return f"{text}; no packet of this flow has asked for one lately", "send packets with DF set"
        counters = self.dp.stats(self.idx)
        text += f"; a packet asked {_ago(self.now, asked)}"
        for name, hint in (
            ("ctl_auth", "an answer had a wrong authenticator: the hosts' secrets differ"),
            ("ctl_params", "an answer had other segment-bits or key-bits"),
            ("ctl_path", "an answer's DSCP or Identification was changed on the way"),
            (
                "ctl_conflict",
                "the peer offered a key of another flow; it will offer another",
            ),
            ("exhausted", "all keys of the pair are taken: more key-bits, or a shorter lease"),
            ("held", "this host's datapath has just started"),
        ):
            if counters.get(name):
                return f"{text} ({name} {counters[name]})", hint
        return (
            text,
            f"{peer or 'the peer'} does not offer one: the destination may not be behind it, or it may have "
            "no FDB entry for this host, be in hold-down, or have no key free (its counters tell)",
        )

    def other_way(self) -> None:
        """The opposite direction, whose keys this host gives."""
        for _, _, s in self.dp.slots(self.now):
            if (address(s.sip), address(s.dip)) == (self.target, self.source) and s.valid > self.now:
                self.add("opposite direction", True, f"decoded, by key {s.key} for {address(s.peer)}")
                return
        own = [f for f, _ in [*self.rows("flows"), *self.rows("solicits")]]
        text = "not decoded"
        hint = "xmasq explain on the peer says why"
        if own:
            known = {(k.link, mac(k.mac)): any(seen.peer) for k, seen in self.dp.values("macs")}
            if known.get((self.idx, mac(own[0].smac)), True):
                text += f": {mac(own[0].smac)} is not known to be behind this host"
        self.add("opposite direction", None, text, hint)


@api
def explain(link: str, source: str, destination: str, *, netns: Netns | None = None) -> Explanation:
    """Why packets from one container to another are encoded on this host, or are not.

    link: its name. source, destination: IP addresses as they are inside the link; this host is the
    source's. The conditions come in the order of a packet's way. Raises InputError, XmasqError.
    """
    source, destination = str(_ip("source", source)), str(_ip("destination", destination))
    with IPRoute() as ipr, find_link(ipr, link) as (dp, idx, entry):
        if entry.flags & m.LINK_EXTERNAL:
            why = "is in external mode: what sends there decides on VNI and peer, packet by packet"
            raise InputError("link", f'"{link}" {why}')
        look = _Look(ipr, dp, idx, entry, source, destination)
        look.device_is_ready()
        look.addresses_fit()
        pairs = {i: p.gen for i, p in dp.values("pairs")}
        live = next(
            (
                (f, e)
                for f, e in look.rows("flows")
                if look.now < e.lease_end and pairs.get(e.pair) == e.pair_gen
            ),
            None,
        )
        peer = look.peer_is_good(live)
        if peer:
            look.route_leads_there(peer)
        current = look.key_is_there(peer, live)
        needed = ("link", "fast path", "hooks", "addresses", "path")
        encoded = current and all(c.met for c in look.conditions if c.name in needed)
        look.other_way()
        return Explanation(link, source, destination, peer, encoded, tuple(look.conditions))
