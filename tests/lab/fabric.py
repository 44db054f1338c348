# SPDX-License-Identifier: Apache-2.0
"""The network between the hosts, and the faults that it can have."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .namespace import Namespace
from .process import LabError, patience

if TYPE_CHECKING:
    from .core import Lab
    from .nodes import Host, Router

#: As seen by the host: what it sends, what it receives, or both.
Direction = Literal["from", "to", "both"]

_TABLE = "netdev lab"


@dataclass(frozen=True)
class Port:
    """The fabric's end ``name`` of the interface ``peer`` of ``host``."""

    fabric: Fabric
    name: str
    host: Host
    peer: str

    def capture(self, filter: str = "", **kwargs: Any) -> Capture:
        """Captures on this port; see :meth:`Fabric.capture`."""
        return Capture(self.fabric, self.name, filter, **kwargs)


class Fabric(Namespace):
    """A namespace with a bridge, of which each host's link is a port: ``fab1``, ``fab2``, ….

    Faults are nftables rules on those ports, so the hosts' own hooks stay free. Rules are carried
    out in the order in which they were made. A rule sees packets as they come from the host, so an
    unsegmented one (see :meth:`Host.offloads`) is one packet to it, up to 64 KB.
    """

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab, "fab")
        self.ports: list[Port] = []
        self._rules = itertools.count(1)
        self.sysctl({"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1})
        self.ip(
            f"link add br0 mtu {lab.mtu} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            "link set br0 up",
        )

    def plug(self, host: Host, ifname: str, *, mtu: int) -> Port:
        """A veth from the bridge to ``ifname`` in ``host``; its far end is still down."""
        port = Port(self, f"fab{len(self.ports) + 1}", host, ifname)
        self.ip(
            f"link add {port.name} mtu {mtu} type veth peer name {ifname} mtu {mtu} netns {host.name}",
            f"link set {port.name} master br0",
            f"link set {port.name} up",
        )
        self.ports.append(port)
        return port

    def join(self, router: Router, ifname: str, *, segment: str = "br0", mtu: int) -> None:
        """A veth from a segment to ``ifname`` of a router, which comes up with its address."""
        name = f"{router.role}-{ifname}"
        self.ip(
            f"link add {name} mtu {mtu} type veth peer name {ifname} mtu {mtu} netns {router.name}",
            f"link set {name} master {segment}",
            f"link set {name} up",
        )
        router.ip(
            f"addr add {router.addresses[4]}/24 dev {ifname}",
            f"addr add {router.addresses[6]}/64 dev {ifname} nodad",
            f"link set {ifname} up",
        )

    def part(self, host: Host, segment: str, *, ifname: str = "eth0") -> None:
        """Moves a host's interface to a segment of its own, which is made if need be."""
        if segment not in (one["ifname"] for one in self.ip_json("link show type bridge")):
            self.ip(
                f"link add {segment} mtu {self.lab.mtu} type bridge stp_state 0 forward_delay 0",
                f"link set {segment} up",
            )
        self.ip(f"link set {self.port(host, ifname).name} master {segment}")

    # Faults

    def rule(
        self, statement: str, *, match: str = "", host: Host | None = None, direction: Direction
    ) -> Rule:
        """Adds an nftables rule on the port of ``host`` (of every host, by default).

        ``match`` and ``statement`` are nftables expressions, such as ``udp dport 4789 ip dscp 3`` and
        ``drop``. Raises :class:`LabError` when nft does not take them.
        """
        hooks = {"from": ["ingress"], "to": ["egress"], "both": ["ingress", "egress"]}[direction]
        counter = f"rule{next(self._rules)}"
        lines = [f"add table {_TABLE}", f"add counter {_TABLE} {counter}"]
        for port in self.ports:
            if host is not None and port.host is not host:
                continue
            for hook in hooks:
                chain = f"{_TABLE} {port.name}_{hook}"
                lines.append(
                    f'add chain {chain} {{ type filter hook {hook} device "{port.name}" priority 0; }}'
                )
                lines.append(f"add rule {chain} {match} counter name {counter} {statement}")
        self.run(["nft", "-f", "-"], input="\n".join(lines) + "\n")
        return Rule(self, counter)

    def loss(
        self, percent: float, *, only: str = "", host: Host | None = None, direction: Direction = "from"
    ) -> Rule:
        """Drops ``percent`` of the packets (of those that match ``only``), each by chance."""
        return self.rule("drop", match=f"{only} {_chance(percent)}", host=host, direction=direction)

    def dscp_bleach(
        self, *, percent: float = 100, only: str = "", host: Host | None = None, direction: Direction = "from"
    ) -> Rule:
        """Sets DSCP to 0, as some networks do."""
        match = f"meta protocol ip {only} {_chance(percent)}"
        return self.rule("ip dscp set 0", match=match, host=host, direction=direction)

    def id_rewrite(
        self, *, percent: float = 100, only: str = "", host: Host | None = None, direction: Direction = "from"
    ) -> Rule:
        """Sets the IPv4 Identification to a random value."""
        match = f"meta protocol ip {only} {_chance(percent)}"
        # Not numgen: nft 1.0.6 turns its 32 bits round for the network and then writes the upper 16, zeros.
        return self.rule("ip id set meta random", match=match, host=host, direction=direction)

    def mark_ce(
        self, *, percent: float = 100, only: str = "", host: Host | None = None, direction: Direction = "from"
    ) -> Rule:
        """Marks ECN-capable packets as Congestion Experienced (RFC 3168)."""
        match = f"ip ecn {{ ect0, ect1 }} {only} {_chance(percent)}"
        return self.rule("ip ecn set ce", match=match, host=host, direction=direction)

    def clear(self) -> None:
        """Takes all rules away."""
        self.run(["nft", "-f", "-"], input=f"add table {_TABLE}\ndelete table {_TABLE}\n")

    # Captures

    def port(self, host: Host, ifname: str = "eth0") -> Port:
        """The port that an interface of a host is joined to."""
        for port in self.ports:
            if port.host is host and port.peer == ifname:
                return port
        raise LabError(f"{ifname} of {host.name} is not joined to the fabric")

    def capture(self, host: Host, filter: str = "", **kwargs: Any) -> Capture:
        """Captures what passes between ``host`` and the fabric, both ways; see :class:`Capture`.

        Packets from the host are seen before the rules on its port, packets to it after them.
        """
        return self.port(host).capture(filter, **kwargs)


@dataclass(frozen=True)
class Rule:
    """A fault in the fabric, and how often it struck."""

    fabric: Fabric
    counter: str

    @property
    def packets(self) -> int:
        """How many packets it was applied to so far."""
        listing = self.fabric.run(["nft", "-j", "list", "counter", *_TABLE.split(), self.counter]).stdout
        return next(
            int(item["counter"]["packets"]) for item in json.loads(listing)["nftables"] if "counter" in item
        )


def _chance(percent: float) -> str:
    """An nftables expression that matches ``percent`` of the packets, in steps of 0.01."""
    if not 0 <= percent <= 100:
        raise LabError(f"percent {percent:g}: 0 to 100 are allowed")
    return "" if percent == 100 else f"numgen random mod 10000 < {round(percent * 100)}"


#: What tcpdump says when it is asked (SIGUSR1).
_PROGRESS = re.compile(r"(\d+) packets? captured, (\d+) packets? received by filter, (\d+) packets? dropped")


class Capture:
    """A tcpdump that has begun when the constructor returns, on ``ifname`` in a namespace.

    It ends by itself after ``count`` packets or ``seconds``. ``snaplen`` is the number of bytes kept
    of each packet, 0 for all. The file is in the lab's directory unless ``path`` is given. As a
    context manager it stops at the end of the ``with``.
    """

    def __init__(
        self,
        where: Namespace,
        ifname: str,
        filter: str = "",
        *,
        count: int = 100_000,
        seconds: float = 60,
        snaplen: int = 0,
        path: Path | None = None,
    ) -> None:
        self.path = path or where.lab.tmp / f"{where.role}-{ifname}-{time.monotonic_ns()}.pcap"
        self._lab = where.lab
        cmd = ["timeout", "-s", "INT", f"{patience(seconds):g}", "tcpdump", "-n", "-Z", "root", "-i", ifname]
        cmd += ["-s", str(snaplen), "-B", "16384", "-U", "--immediate-mode", "-c", str(count)]
        cmd += ["-w", str(self.path), *([filter] if filter else [])]
        self._tcpdump = where.popen(cmd, stdout=subprocess.DEVNULL)
        stderr = self._tcpdump.stderr
        assert stderr is not None
        said = ""
        for line in stderr:
            said += line
            if "listening on" in line:
                return
        self._lab.kill(self._tcpdump)
        raise LabError(f"tcpdump on {ifname} in {where.name}: {said.strip()}")

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> Path:
        """Ends the capture if it still runs; returns the file. Packets sent before are in it.

        Raises :class:`LabError` when the kernel dropped packets, for then the file is not the truth.
        """
        if self._tcpdump.stderr is None or self._tcpdump.stderr.closed:
            return self.path
        if self._tcpdump.poll() is None:
            self._catch_up()
            self._tcpdump.send_signal(signal.SIGINT)
        try:
            _, said = self._tcpdump.communicate(timeout=patience(10))
        except subprocess.TimeoutExpired:
            said = ""
        self._lab.kill(self._tcpdump)
        dropped = [line for line in said.splitlines() if "dropped by kernel" in line]
        if dropped and not dropped[0].startswith("0 "):
            raise LabError(f"capture {self.path.name}: {dropped[0]}")
        return self.path

    def _pid(self) -> int:
        """tcpdump itself, below what ends it in time."""
        pid = self._tcpdump.pid
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(children[0])
        return pid

    def _catch_up(self) -> None:
        """Waits until tcpdump has taken what the kernel had for it: SIGINT would have it leave the rest."""
        stderr, lag, same = self._tcpdump.stderr, -1, 0
        assert stderr is not None
        tcpdump = self._pid()
        deadline = time.monotonic() + patience(10)
        # A few of the kernel's may be from before the filter, and never taken: then the difference stays.
        while lag != 0 and same < 5 and time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(tcpdump, signal.SIGUSR1)
            found = None
            for line in stderr:
                if found := _PROGRESS.search(line):
                    break
            if not found:
                return  # it has ended by itself
            taken, received, dropped = map(int, found.groups())
            same = same + 1 if lag == received - dropped - taken else 0
            lag = received - dropped - taken
            if lag:
                time.sleep(patience(0.05))

    def packets(self) -> list[Any]:
        """Stops, and returns the packets as scapy ones (``.time`` is their time of capture)."""
        from scapy.layers import inet, l2  # noqa: F401  # they teach scapy to take frames apart
        from scapy.utils import PcapReader

        with PcapReader(str(self.stop())) as reader:
            return list(reader)
