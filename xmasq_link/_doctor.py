# SPDX-License-Identifier: Apache-2.0
"""What on this host could keep xmasq from working, or from being fast: one check after the other.

A check only looks. It yields findings; one that cannot be made says so, as a finding of its own.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.ethtool.ethtool import Ethtool
from pyroute2.netlink.exceptions import NetlinkError

from kmod_ebpf import bpf, loader, summed

from . import _offload
from ._datapath import api
from ._errors import InputError
from ._flow import peers
from ._hooks import has_tcx
from ._link import find_link, links
from ._look import HOOK_HINT, hook_faults
from ._model import Finding, Link
from ._netns import Netns

OK, INFO, WARNING, FAULT = "ok", "info", "warning", "fault"
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_BPF": 39, "CAP_PERFMON": 38}
_CAP_SYS_ADMIN = 21
_OLDEST = (5, 10)
_TOOL_SECONDS = 10
#: Counters that tell of something wrong, with what it is.
_COUNTERS = {
    "ctl_auth": "control packets had a wrong authenticator: the hosts' secrets differ, or somebody forges",
    "ctl_params": "a peer has other segment-bits or key-bits",
    "ctl_version": "a peer speaks another version of the protocol",
    "ctl_path": "the network changes DSCP or the Identification of control packets",
    "stray": "the network changes keys of encoded packets",
    "exhausted": "all keys of a pair were taken: more key-bits, or a shorter lease",
    "error": "the kernel could not change packets, which were dropped",
}


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _kernel() -> Iterator[Finding]:
    release = platform.release()
    match = re.match(r"(\d+)\.(\d+)", release)
    old = match is not None and (int(match[1]), int(match[2])) < _OLDEST
    yield Finding(
        "kernel",
        FAULT if old else OK,
        f"Linux {release}, hooks by {'tcx' if has_tcx() else 'clsact'}",
        "xmasq needs Linux 5.10" if old else "",
    )
    text = _read("/sys/kernel/security/lockdown") or ""
    mode = re.search(r"\[(\w+)\]", text)
    if mode and mode[1] == "confidentiality":
        hint = "boot with lockdown=integrity or without lockdown"
        yield Finding("lockdown", FAULT, "confidentiality: BPF programs cannot read packets", hint)
    else:
        yield Finding("lockdown", OK, mode[1] if mode else "none", "")


def _rights() -> Iterator[Finding]:
    status = re.search(r"^CapEff:\s*([0-9a-f]+)", _read("/proc/self/status") or "", re.MULTILINE)
    have = int(status[1], 16) if status else 0
    missing = [
        name
        for name, bit in _CAPABILITIES.items()
        if not (have >> bit & 1 or (have >> _CAP_SYS_ADMIN & 1 and name != "CAP_NET_ADMIN"))
    ]
    if missing:
        yield Finding("rights", FAULT, f"this process lacks {', '.join(missing)}", "run as root")
    else:
        yield Finding("rights", OK, "BPF programs can be loaded, and attached", "")


def _datapath() -> Iterator[Finding]:
    bcc = importlib.util.find_spec("bcc") is not None
    if not bcc:
        yield Finding("compiler", WARNING, "BCC is not installed", "Debian: apt install python3-bpfcc")
    try:
        loaded = loader.load(loader.compile_object())
        try:
            jited = all(bpf.prog_info(fd).jited for fd in loaded.programs.values())
        finally:
            loaded.close()
    except loader.CompileError as e:
        yield Finding("datapath", FAULT, str(e), "Debian: apt install python3-bpfcc")
    except loader.LoadError as e:
        hint = f"this kernel lacks {e.missing}" if e.missing else "report it, with the kernel's version"
        yield Finding("datapath", FAULT, str(e), hint)
    else:
        yield Finding("datapath", OK, "compiles, and the kernel takes it", "")
        if not jited:
            yield Finding("JIT", WARNING, "programs are interpreted", "sysctl net.core.bpf_jit_enable=1")
        if summed.field():
            yield Finding("checksums", OK, "are written along with the headers", "")
        else:
            text = "are written by a helper, which takes some 40 ns of a packet's time at each end"
            yield Finding("checksums", INFO, text, "Linux 6.2 with BTF and JIT, and libbpf 1, do without")


def _links() -> Iterator[Finding]:
    here = links()
    if not here:
        yield Finding("links", INFO, "there is none in this network namespace", "")
    with IPRoute() as ipr:
        for link in here:
            yield from _link(ipr, link)


def _link(ipr: IPRoute, link: Link) -> Iterator[Finding]:
    name = link.name
    if not link.up:
        yield Finding(name, WARNING, "the link is down", f"ip link set {name} up")
    if not link.fastpath:
        yield Finding(name, WARNING, "the fast path is off", f"xmasq link set {name} fastpath on")
    with find_link(ipr, name) as (_, _, entry):
        faults = hook_faults(ipr, entry)
    for text in faults:
        yield Finding(name, FAULT, text, HOOK_HINT)
    if not faults:
        yield Finding(name, OK, "its programs are on their hooks, and run first", "")
    yield from _mtu(ipr, link)
    for counter, text in _COUNTERS.items():
        if link.stats.get(counter):
            yield Finding(name, WARNING, f"{counter} {link.stats[counter]}: {text}", "")
    traffic = link.traffic
    if traffic and traffic.tx.packets >= 1000 and traffic.tx_fast.packets * 2 < traffic.tx.packets:
        reasons = sorted(traffic.fallback_reasons.items(), key=lambda item: -item[1])[:3]
        text = ", ".join(f"{reason.replace('_', ' ')} {n}" for reason, n in reasons)
        hint = f"xmasq explain {name} SOURCE DESTINATION"
        yield Finding(name, WARNING, f"most packets take the fallback: {text}", hint)


def _mtu(ipr: IPRoute, link: Link) -> Iterator[Finding]:
    try:
        underlay = ipr.link("get", ifname=link.dev)[0]
    except NetlinkError:
        yield Finding(
            link.name, FAULT, f"its underlay {link.dev} is gone", "delete the link, and add it anew"
        )
        return
    mtu = underlay.get_attr("IFLA_MTU")
    if link.mtu > mtu:
        text = f"its MTU is {link.mtu}, that of {link.dev} only {mtu}"
        yield Finding(link.name, WARNING, text, f"ip link set {link.name} mtu {mtu}")
    elif link.mtu < mtu:
        text = f"its MTU is {link.mtu}, and {mtu} would do"
        yield Finding(link.name, INFO, text, f"ip link set {link.name} mtu {mtu}, and in the containers")
    else:
        yield Finding(link.name, OK, f"its MTU is that of {link.dev}, {mtu}", "")


def _underlays() -> Iterator[Finding]:
    for device in sorted({link.dev for link in links()}):
        try:
            _offload.check_udp(device)
        except InputError as e:
            yield Finding(device, FAULT, str(e).removeprefix("dev: ").split(": ")[0], str(e).split(": ")[-1])
        with Ethtool() as ethtool:
            try:
                features = ethtool.get_features(device).features
            except (NetlinkError, OSError) as e:
                yield Finding(device, INFO, f"its offloads cannot be read: {e}", "")
                continue
        off = [
            name
            for name in ("tx-checksum-ip-generic", "tx-tcp-segmentation", "rx-gro")
            if name in features and not features[name].enable
        ]
        if off:
            text = f"off: {', '.join(off)}"
            yield Finding(device, INFO, text, f"ethtool -K {device} tx on tso on gro on")
        else:
            yield Finding(
                device, OK, "checksum, segmentation and receive offloads are on, or not the device's", ""
            )


def _settings() -> Iterator[Finding]:
    everywhere = _read("/proc/sys/net/ipv4/conf/all/rp_filter")
    for link in links():
        own = _read(f"/proc/sys/net/ipv4/conf/{link.name}/rp_filter")
        if max(own or "0", everywhere or "0") == "1":
            text = "strict reverse path filtering drops packets that would not be answered through the link"
            hint = f"sysctl net.ipv4.conf.{link.name}.rp_filter=2, and conf.all, unless routes are symmetric"
            yield Finding(link.name, WARNING, text, hint)


def _tool(*words: str) -> str | None:
    """What a tool prints about the present namespace, or None without it."""
    if shutil.which(words[0]) is None:
        return None
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_TOOL_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


#: Rules that write what an encoded packet needs: DSCP, Identification, or any header bytes.
_NFT_WRITES = re.compile(r"\b(ip6? dscp|ip id|ip6 flowlabel|@nh,\d+,\d+) set\b")
_IPTABLES_WRITES = re.compile(r"-j (DSCP|TOS)\b")
_TC_WRITES = frozenset({"pedit", "dsmark", "skbmod"})


def _firewall() -> Iterator[Finding]:
    rules = _tool("nft", "-s", "list", "ruleset")
    tables = [_tool(tool) for tool in ("iptables-save", "ip6tables-save")]
    seen = [x for x in (rules, *tables) if x is not None]
    if not seen:
        yield Finding("firewall", INFO, "neither nft nor iptables-save can be asked", "")
        return
    writes = [
        line.strip()
        for text, pattern in ((rules, _NFT_WRITES), *((table, _IPTABLES_WRITES) for table in tables))
        for line in (text or "").splitlines()
        if pattern.search(line)
    ]
    for line in writes:
        hint = "leave packets from and to the VTEP addresses out: their DSCP and Identification are xmasq's"
        yield Finding("firewall", WARNING, f"this rule writes headers: {line}", hint)
    drops = [
        text for text in seen if re.search(r"hook input\b.*policy drop|^:INPUT DROP", text, re.MULTILINE)
    ]
    if drops:
        ports = ", ".join(sorted({str(link.port) for link in links()})) or "4789"
        text = "what arrives is dropped unless a rule accepts it"
        yield Finding("firewall", INFO, text, f"accept UDP port {ports} from the peers, as for VXLAN")
    if not writes:
        yield Finding("firewall", OK, "no rule writes DSCP or Identification", "")


def _qos() -> Iterator[Finding]:
    with IPRoute() as ipr:
        devices = {link.dev for link in links()}
        for device in sorted(devices):
            (index,) = ipr.link_lookup(ifname=device) or (0,)
            found = []
            for qdisc in ipr.get_qdiscs(index=index):
                kind = qdisc.get_attr("TCA_KIND")
                options = qdisc.get_attr("TCA_OPTIONS")
                wash = kind == "cake" and options and options.get_attr("TCA_CAKE_WASH")
                if kind == "dsmark" or wash:
                    found.append(f"qdisc {kind}{' with wash' if wash else ''}")
            for side in ("ingress", "egress"):
                text = _tool("tc", "filter", "show", "dev", device, side) or ""
                found += [
                    f"tc {side} action {name}" for name in _TC_WRITES if re.search(rf"\b{name}\b", text)
                ]
            for text in found:
                hint = "it may change DSCP or Identification of encoded packets"
                yield Finding(device, WARNING, f"{text} writes headers", hint)
            if not found:
                yield Finding(device, OK, "no qdisc or tc action writes headers", "")


def _peers() -> Iterator[Finding]:
    for peer in peers():
        name = f"peer {peer.peer}"
        if peer.verdict == "path":
            text = f"nothing is encoded towards it for another {peer.off_for_ms / 1000:.0f} s"
            hint = "the path rewrites DSCP or Identification, or lets only UDP through"
            yield Finding(name, WARNING, text, hint)
        elif peer.heard_ms_ago is None:
            yield Finding(name, INFO, "was never heard", "")
        else:
            ago = peer.heard_ms_ago / 1000
            text = f"heard {ago:.0f} s ago, {peer.flows} flows to it, {peer.keys} keys for it"
            yield Finding(name, OK, text, "")


_CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _kernel,
    _rights,
    _datapath,
    _links,
    _underlays,
    _settings,
    _firewall,
    _qos,
    _peers,
)


@api
def diagnose(*, netns: Netns | None = None) -> list[Finding]:
    """Looks for what keeps xmasq from working on this host, or from being fast.

    A check that fails itself becomes a finding, so that the others are made. Raises InputError for an
    unknown namespace.
    """
    found: list[Finding] = []
    for check in _CHECKS:
        try:
            found.extend(check())
        except Exception as e:
            what = os.strerror(e.code) if isinstance(e, NetlinkError) else str(e)
            text = f"cannot be looked at: {what}"
            found.append(Finding(check.__name__.strip("_"), WARNING, text, "run as root"))
    return found
