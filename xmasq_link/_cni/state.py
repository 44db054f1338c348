# SPDX-License-Identifier: Apache-2.0
"""What processes of one node tell each other: locks, and the agent's word on the node's subnets."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
from collections.abc import Iterator
from pathlib import Path

from .config import Net, Network
from .errors import IO_FAILURE, TRY_AGAIN_LATER, CniError


def state_path(network: Network) -> Path:
    """Where the agent leaves the node's subnets for the plugin."""
    return Path(network.run_dir, network.name, "node.json")


def read_subnets(network: Network) -> tuple[Net, ...]:
    """The node's own subnets. Raises CniError with "try again later" as long as the agent has none."""
    if network.subnets or network.datastore is None:
        return network.subnets
    path = state_path(network)
    try:
        texts = json.loads(path.read_text())["subnets"]
        return tuple(ipaddress.ip_network(text) for text in texts)
    except FileNotFoundError:
        raise CniError(
            TRY_AGAIN_LATER, f'the agent has no subnet for network "{network.name}" yet', f"{path} is missing"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CniError(IO_FAILURE, f"{path}: {e}") from e


def write_subnets(network: Network, subnets: tuple[Net, ...]) -> None:
    """Leaves the node's subnets for the plugin."""
    path = state_path(network)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"subnets": [str(net) for net in subnets]}) + "\n")
    new.replace(path)


@contextlib.contextmanager
def locked(network: Network, what: str = "lock", *, wait: bool = True) -> Iterator[None]:
    """Holds a lock of the network at this node. Without wait, raises BlockingIOError if it is held.

    "lock": whoever changes the node's links, routes and neighbours. "agent": the agent, as it lives.
    """
    path = Path(network.run_dir, network.name, what)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise CniError(IO_FAILURE, f"runDir: {path}: {e.strerror}") from e
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(fd)


def forget(network: Network) -> None:
    """Removes the agent's note of the node's subnets."""
    state_path(network).unlink(missing_ok=True)
