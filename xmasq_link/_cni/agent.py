# SPDX-License-Identifier: Apache-2.0
"""The agent of a node: publishes it, follows the others, and keeps the kernel in step. One for each network.

The datastore is needed for changes only. While it can not be reached, everything stays as it is. Two
threads: one follows the datastore, the other does the rest.
"""

from __future__ import annotations

import contextlib
import json
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pyroute2 import IPRoute

from .._errors import InputError, XmasqError
from . import config as cfg
from . import masquerade, routes, state
from . import node as nodes
from .config import TYPE, Endpoint, Net, Network
from .errors import CniError
from .store import Change, ListAgain, Snapshot, Store, StoreError, open_store
from .underlay import find_underlay

#: How often the node's own address and link are looked at, and how often all of what peers need, in s.
LOOK_S, RECONCILE_S = 3.0, 60.0
#: For how long a node that is missing from a new list counts as present: after a failure of the datastore
#: nodes whose leases have ended, or were lost with it, need a moment to come back.
GRACE_S = 60.0
_RETRY_S, _RETRY_MOST_S = 0.5, 15.0
_WAIT_S = 0.5

Log = Callable[[str], None]


def read_config(path: str) -> Network:
    """xmasq-cni's configuration from a file, in which it may be one of a list. Raises InputError."""
    try:
        raw = json.loads(Path(path).read_text())
    except (OSError, ValueError) as e:
        raise InputError("config", f"{path}: {getattr(e, 'strerror', None) or e}") from e
    if isinstance(raw, dict) and isinstance(raw.get("plugins"), list):
        ours = [item for item in raw["plugins"] if isinstance(item, dict) and item.get("type") == TYPE]
        if not ours:
            raise InputError("config", f'{path}: no plugin of the list has "type": "{TYPE}"')
        # As runtimes do (SPEC.md, section 3, "Deriving request configuration").
        raw = {**ours[0], "name": raw.get("name"), "cniVersion": raw.get("cniVersion")}
    try:
        return cfg.parse(raw)
    except CniError as e:
        raise InputError("config", f"{path}: {e.msg}") from e


def run_agent(
    config: str,
    *,
    node: str | None = None,
    once: bool = False,
    leave: bool = False,
    log: Log = print,
) -> None:
    """Runs the agent of a CNI network until it is interrupted (docs/cni.md).

    config: the path of the configuration. node: this node's name, by default its host name. once: set
    everything up, and end. leave: take everything of this network away from the node, and end. log:
    is called with a line for each thing that was done or went wrong.

    Raises InputError for a bad configuration, XmasqError if the agent runs already, or can not leave.
    """
    network = read_config(config)
    name = node
    name = name or socket.gethostname()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(state.locked(network, "agent", wait=False))
        except BlockingIOError:
            raise XmasqError(f'an agent for the network "{network.name}" runs already') from None
        except CniError as e:
            raise XmasqError(e.msg) from e
        agent = Agent(network, name, log)
        if leave:
            agent.leave()
        else:
            agent.run(once=once)


class Agent:
    """See the module. One of its two threads runs _follow(), the other all else."""

    def __init__(self, network: Network, name: str, log: Log) -> None:
        self._network = network
        self._log = log
        try:
            self._store: Store | None = open_store(network, name) if network.datastore else None
        except StoreError as e:
            raise XmasqError(str(e)) from e
        self._news: queue.Queue[Snapshot | Change | str] = queue.Queue()
        self._peers: dict[str, tuple[Endpoint, ...]] = {}
        self._missing: dict[str, float] = {}
        self._known = self._store is None  # whether there has been a list
        self._complete = False
        self._announced: set[Endpoint] = set()
        self._joined = False
        self._published: tuple[Endpoint, ...] = ()
        self._attached: list[nodes.Attached] = []
        self._dirty = True
        self._said = ""
        self._next = dict.fromkeys(("look", "keep", "join", "reconcile"), 0.0)

    def run(self, *, once: bool = False) -> None:
        """Works until it is interrupted; once: until everything is set up."""
        with IPRoute() as ipr:
            if self._store is not None:
                threading.Thread(target=self._follow, args=(self._store,), daemon=True).start()
            while True:
                self._step(ipr)
                if once and self._complete:
                    return
                self._wait()

    def leave(self) -> None:
        """Takes the node out of the network: its keys, its link, routes and rules. Raises XmasqError."""
        if self._store is not None:
            try:
                self._store.leave()
            except StoreError as e:
                raise XmasqError(str(e)) from e
        with IPRoute() as ipr, state.locked(self._network):
            with contextlib.suppress(CniError):
                if self._network.encapsulation == "none":
                    for subnet in state.read_subnets(self._network):
                        underlay = find_underlay(ipr, self._network, subnet.version)
                        at = nodes.Attached(
                            underlay.index, underlay.name, underlay.mtu, self._own(ipr, subnet)
                        )
                        routes.reconcile(ipr, self._network, at, ())
            nodes.remove_ours(ipr, self._network)
            masquerade.remove(self._network)
            state.forget(self._network)
        self._log("left the network")

    # What has to be done, by time and by news

    def _step(self, ipr: IPRoute) -> None:
        try:
            self._keep()
            looked = self._due("look", LOOK_S)
            if looked:
                self._look(ipr)
            if self._due("reconcile", RECONCILE_S):
                self._dirty = True
            if self._dirty and self._known and self._attached:
                self._reconcile(ipr)
            if looked:
                self._said = ""
        except (CniError, StoreError, XmasqError) as e:
            self._trouble(str(e))
        except Exception as e:
            # netlink and the datastore answer in many ways; an agent that ends helps nobody.
            self._trouble(f"{type(e).__name__}: {e}")

    def _due(self, what: str, every: float) -> bool:
        now = time.monotonic()
        if now < self._next[what]:
            return False
        self._next[what] = now + every
        return True

    def _trouble(self, text: str) -> None:
        """Says what is wrong, once."""
        if text != self._said:
            self._log(f"{text}; trying again")
            self._said = text

    def _wait(self) -> None:
        """Takes in what the other thread has found, at least one thing if there is any soon."""
        with contextlib.suppress(queue.Empty):
            news = self._news.get(timeout=_WAIT_S)
            while True:
                self._take(news)
                news = self._news.get_nowait()

    def _take(self, news: Snapshot | Change | str) -> None:
        now = time.monotonic()
        match news:
            case str():
                self._log(f"{news}; what is there stays as it is")
            case Change():
                self._missing.pop(news.key, None)
                self._put(news.key, news.endpoints)
            case Snapshot():
                if not self._known:
                    self._log(f"{len(news.nodes)} subnets in the datastore")
                self._known = True
                for key in self._peers.keys() - news.nodes.keys():
                    self._missing.setdefault(key, now + GRACE_S)
                    self._dirty = True
                for key, endpoints in news.nodes.items():
                    self._missing.pop(key, None)
                    self._put(key, endpoints)
                if not set(self._published) <= {e for own in news.nodes.values() for e in own}:
                    self._next["look"] = self._next["join"] = 0.0
                    self._published = ()

    def _put(self, key: str, endpoints: tuple[Endpoint, ...]) -> None:
        if self._peers.get(key, ()) != endpoints:
            self._dirty = True
        if endpoints:
            self._peers[key] = endpoints
        else:
            self._peers.pop(key, None)

    # This node

    def _own(self, ipr: IPRoute, subnet: Net) -> Endpoint:
        underlay = find_underlay(ipr, self._network, subnet.version)
        return Endpoint(subnet, underlay.address, cfg.mac_of(underlay.address, self._network.vni))

    def _look(self, ipr: IPRoute) -> None:
        """This node's subnets, link and address: published, if they are not or have changed."""
        if self._store is None:
            subnets = self._network.subnets
        else:
            subnets = self._subnets_before()
            if not subnets:
                subnets = tuple(e.subnet for e in self._join(ipr, ()))
        self._attach(ipr, subnets)
        own = tuple(at.own for at in self._attached)
        if self._store is not None and self._published and own != self._published:
            self._store.moved()
        if self._store is not None and own != self._published and self._due("join", _RETRY_S):
            self._join(ipr, subnets)

    def _subnets_before(self) -> tuple[Net, ...]:
        """The subnets that are configured, or that an agent has got for the node since it started."""
        try:
            return state.read_subnets(self._network)
        except CniError:
            return ()

    def _join(self, ipr: IPRoute, want: tuple[Net, ...]) -> tuple[Endpoint, ...]:
        assert self._store is not None
        published = self._store.join(lambda net: self._own(ipr, net), want)
        for endpoint in set(published) - self._announced:
            self._log(f"this node has {endpoint.subnet} at {endpoint.vtep}")
        self._announced = set(published)
        if not self._network.subnets:
            state.write_subnets(self._network, tuple(e.subnet for e in published))
        self._published, self._joined = published, True
        return published

    def _attach(self, ipr: IPRoute, subnets: tuple[Net, ...]) -> None:
        with state.locked(self._network):
            attached = nodes.attach(ipr, self._network, subnets)
        if attached != self._attached:
            self._attached = attached
            self._dirty = True

    def _keep(self) -> None:
        if self._store is None or not self._joined or not self._due("keep", self._store.interval):
            return
        if not self._store.keep():
            self._log("the lease has ended")
            self._published = ()
            self._next["look"] = self._next["join"] = 0.0

    # The others

    def _reconcile(self, ipr: IPRoute) -> None:
        now = time.monotonic()
        for key, until in list(self._missing.items()):
            if now >= until:
                del self._missing[key]
                self._peers.pop(key, None)
        if self._missing:
            # Looked at again in time, without a list that may never come.
            self._next["reconcile"] = min([self._next["reconcile"], *self._missing.values()])
        peers = list(self._network.peers) if self._store is None else list(self._others())
        with state.locked(self._network):
            for at in self._attached:
                for line in routes.reconcile(ipr, self._network, at, peers):
                    self._log(line)
        self._dirty = False
        self._complete = self._store is None or bool(self._published)

    def _others(self) -> Iterator[Endpoint]:
        """The peers that can be: not this node, within the network, and each link address once."""
        own = {at.own.subnet for at in self._attached}
        macs: dict[str, Endpoint] = {}
        for key in sorted(self._peers):
            for peer in self._peers[key]:
                if peer.subnet in own:
                    continue
                cluster = self._network.cluster
                if any(net.version == peer.family and net.overlaps(peer.subnet) for net in own) or (
                    cluster and not any(cfg.within(peer.subnet, whole) for whole in cluster)
                ):
                    self._trouble(
                        f"ignoring the subnet {peer.subnet} of {peer.vtep}: not one of this network"
                    )
                elif (first := macs.setdefault(peer.mac, peer)).vtep != peer.vtep:
                    self._trouble(f"ignoring {peer.vtep}: it has the link address of {first.vtep}")
                else:
                    yield peer

    # The other thread

    def _follow(self, store: Store) -> None:
        wait, said = _RETRY_S, ""
        while True:
            try:
                snapshot = store.snapshot()
                wait, said = _RETRY_S, ""
                self._news.put(snapshot)
                for change in store.watch(snapshot.revision):
                    self._news.put(change)
            except ListAgain:
                continue
            except Exception as e:
                text = str(e) if isinstance(e, StoreError) else f"{type(e).__name__}: {e}"
                if text != said:
                    self._news.put(text)
                    said = text
            # Not all nodes at the same moment, or a datastore that comes back is knocked down again.
            time.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(wait * 2, _RETRY_MOST_S)
