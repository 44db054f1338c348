# SPDX-License-Identifier: Apache-2.0
"""What the agent wants of a datastore, whatever kind it is."""

from __future__ import annotations

import importlib
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from .config import Endpoint, Net, Network

#: What this node is in a subnet that it gets: the VTEP address of that family goes with it.
Build = Callable[[Net], Endpoint]


#: Of every connection: a dead one, on which nothing is sent while a watch is quiet, is noticed in 20 s.
SOCKET_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000),
]


class StoreError(Exception):
    """The datastore can not be reached or refuses. The text is one line. It is tried again later."""


def reason(e: Exception) -> str:
    """What an HTTP client's exception is about, in one line that is the same each time."""
    text = " ".join(str(getattr(e, "reason", None) or e).split()) or type(e).__name__
    return re.sub(r"^<[^>]*>: ", "", text)  # urllib3 1.26 begins with an object's address


class ListAgain(Exception):
    """The watch has missed something: only a new list tells what is there."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is published. nodes: by a key that is the datastore's own; revision: where to watch from."""

    nodes: Mapping[str, tuple[Endpoint, ...]]
    revision: str


@dataclass(frozen=True, slots=True)
class Change:
    """One key has changed; no endpoints: it is gone."""

    key: str
    endpoints: tuple[Endpoint, ...]


class Store(Protocol):
    """A datastore. Every method may raise StoreError.

    join() and keep() are called from one thread, snapshot() and watch() from another.
    """

    #: How often keep() has to be called, in seconds.
    interval: float

    def join(self, build: Build, want: tuple[Net, ...]) -> tuple[Endpoint, ...]:
        """Publishes this node, again if it is there already; returns what it is now.

        want: the subnets that it had before or must have; () for any.
        """

    def keep(self) -> bool:
        """Says that this node is alive; returns whether it is still published."""

    def moved(self) -> None:
        """This node has another address now, so idle connections that it had are dead."""

    def leave(self) -> None:
        """Takes back what this node has published."""

    def snapshot(self) -> Snapshot:
        """All that is published."""

    def watch(self, revision: str) -> Iterator[Change]:
        """What changes after a revision; goes on for ever. Raises ListAgain as well."""


def open_store(network: Network, node: str) -> Store:
    """The datastore of a network's configuration. Raises StoreError.

    The client libraries are optional, and loaded here at the earliest.
    """
    assert network.datastore is not None
    module = {"etcd": "etcd", "kubernetes": "kube"}[network.datastore.kind]
    try:
        found = importlib.import_module(f"{__package__}.{module}")
    except ImportError as e:
        kind = network.datastore.kind
        raise StoreError(
            f'the Python package "{e.name}" is missing; `pip install xmasq[{kind}]` brings it'
        ) from e
    store: Store = found.open_store(network, node)
    return store
