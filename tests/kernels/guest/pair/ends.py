# SPDX-License-Identifier: Apache-2.0
"""The two ends of the wire: how they are set up, and how to run a command on either."""

from __future__ import annotations

import json
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import Any

from tests.lab import LabError, patience, process

CONTROL, PORT = "198.51.100.{}", 7000
WIRE = "192.0.2.{}"
INNER = "203.0.113.{}"


def prepare(number: int) -> None:
    """Names and addresses of the NICs; they are told apart by the addresses that QEMU gave them."""
    for name, part, address in (("control", 2, CONTROL), ("wire", 1, WIRE)):
        mac = f"02:00:00:00:0{part}:0{number}"
        for nic in Path("/sys/class/net").iterdir():
            if (nic / "address").read_text().strip() == mac:
                process.run(f"ip link set {nic.name} name {name}")
                break
        else:
            raise LabError(f"no NIC has the address {mac}")
        process.run(f"ip addr add {address.format(number)}/24 dev {name}")
        process.run(f"ip link set {name} up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


class End:
    """One of the two guests. ``other`` is the connection to the second; None: this one."""

    def __init__(self, number: int, other: socket.socket | None) -> None:
        self.number = number
        self._other = other
        self._lines = other.makefile("rw") if other else None
        self.address = INNER.format(number)

    def close(self) -> None:
        """Ends the connection to the second guest, if this end has it."""
        if self._lines is not None and self._other is not None:
            self._lines.close()
            self._other.close()

    def run(self, command: str | list[str], *, timeout: float = 60, check: bool = True) -> str:
        """What a command prints there. Raises :class:`LabError` when it fails."""
        words = process.split(command)
        if self._lines is None:
            done = process.run(words, timeout=timeout, check=False)
            code, out, err = done.returncode, done.stdout, done.stderr
        else:
            print(json.dumps({"run": words, "timeout": patience(timeout)}), file=self._lines, flush=True)
            answer = json.loads(self._lines.readline())
            code, out, err = answer["code"], answer["out"], answer["err"]
        if check and code:
            raise LabError(f"guest {self.number}: exit code {code}: {shlex.join(words)}\n{err or out}")
        return out

    def xmasq(self, words: str) -> str:
        """The project's own command."""
        return self.run([sys.executable, "-m", "xmasq_link", *words.split()])

    def inside(self, command: str | list[str], **kwargs: Any) -> str:
        """A command in the container."""
        return self.run(["ip", "netns", "exec", "box", *process.split(command)], **kwargs)

    def python(self, code: str, *arguments: str) -> list[str]:
        """Python in the container."""
        return ["ip", "netns", "exec", "box", sys.executable, "-c", code, *arguments]

    def counters(self) -> dict[str, int]:
        """The link's counters."""
        (link,) = json.loads(self.xmasq("-j -s link show xm0"))
        found: dict[str, int] = link["xmasq"]
        return found

    def offloads(self, **features: bool) -> None:
        """Switches features of the NIC on the wire, as far as the driver can."""
        for name, value in features.items():
            self.run(f"ethtool -K wire {name} {'on' if value else 'off'}", check=False)

    def build(self, peer: End) -> None:
        """A link, and a container on a bridge with it."""
        self.xmasq(f"link add xm0 type xmasq id 42 local {WIRE.format(self.number)} dev wire")
        for line in (
            "ip link add br0 type bridge forward_delay 0 mcast_snooping 0",
            "ip link set xm0 master br0 up",
            f"bridge fdb append 00:00:00:00:00:00 dev xm0 dst {WIRE.format(peer.number)} self permanent",
            "ip netns add box",
            "ip link add veth0 type veth peer name eth0 netns box",
            "ip link set veth0 master br0 up",
            "ip link set br0 up",
            "ip -n box link set lo up",
            f"ip -n box addr add {self.address}/24 dev eth0",
            "ip -n box link set eth0 up",
        ):
            self.run(line)


def connect() -> tuple[End, End]:
    """Both ends, ready for use; waits for the other guest."""
    prepare(1)
    end = time.monotonic() + patience(60)
    while True:
        try:
            other = socket.create_connection((CONTROL.format(2), PORT), timeout=5)
            break
        except OSError:
            if time.monotonic() > end:
                raise LabError("the other guest does not answer") from None
            time.sleep(1)
    other.settimeout(patience(120))
    here, there = End(1, None), End(2, other)
    here.build(there)
    there.build(here)
    return here, there
