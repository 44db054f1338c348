# SPDX-License-Identifier: Apache-2.0
"""Containers reach the world outside the network with the node's address: nftables, by `nft`."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

from . import config
from .config import Net, Network
from .errors import IO_FAILURE, REFUSED, CniError


def install(network: Network, subnets: tuple[Net, ...]) -> None:
    """Has what leaves the network leave with the node's address.

    One nftables table for each network and address family, replaced as a whole: what is there already
    stays what it is, and connections under way keep their translation.
    """
    lines = []
    for subnet in subnets:
        family = "ip" if subnet.version == config.IPV4 else "ip6"
        table = f"{family} {_table(network)}"
        cluster = [str(net) for net in network.cluster if net.version == subnet.version]
        inner = ", ".join([*cluster, "224.0.0.0/4" if subnet.version == config.IPV4 else "ff00::/8"])
        lines += [
            f"table {table}",
            f"delete table {table}",
            f"table {table} {{",
            " chain postrouting {",
            "  type nat hook postrouting priority srcnat; policy accept;",
            f"  {family} saddr {subnet} {family} daddr != {{ {inner} }} masquerade",
            " }",
            "}",
        ]
    text = "\n".join(lines) + "\n"
    # Replacing costs a few ms and a moment without rules for new connections: only when it differs.
    note = Path(network.run_dir, network.name, "masquerade")
    with contextlib.suppress(OSError):
        if note.read_text() == text and _has_table(network, subnets):
            return
    try:
        done = subprocess.run(["nft", "-f", "-"], input=text, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise CniError(IO_FAILURE, f"ipMasq: cannot run nft: {e}") from e
    if done.returncode:
        raise CniError(REFUSED, "ipMasq: nft refuses the rules", done.stderr.strip())
    note.write_text(text)


def _table(network: Network) -> str:
    from hashlib import sha256

    # nft wants a letter first and knows no "." in names.
    return "xmasq_" + sha256(network.name.encode()).hexdigest()[:12]


def _has_table(network: Network, subnets: tuple[Net, ...]) -> bool:
    try:
        done = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    tables = done.stdout.splitlines()
    return all(
        f"table {'ip' if net.version == config.IPV4 else 'ip6'} {_table(network)}" in tables
        for net in subnets
    )


def remove(network: Network) -> None:
    """Takes the rules away, if there are any."""
    for family in ("ip", "ip6"):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                ["nft", "delete", "table", family, _table(network)], capture_output=True, timeout=30
            )
    Path(network.run_dir, network.name, "masquerade").unlink(missing_ok=True)
