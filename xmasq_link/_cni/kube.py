# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes API as the datastore, by its official client, as flannel's kube subnet manager has it.

A node's subnets are the podCIDRs of its Node object, which Kubernetes gives. Where the tunnel to it ends
stands in an annotation of that object, xmasq/NETWORK, which each node writes of itself alone.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import urllib3
from kubernetes import client, watch
from kubernetes.client.rest import ApiException
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

from . import config
from .config import Endpoint, Net, Network
from .errors import CniError
from .store import SOCKET_OPTIONS, Build, Change, ListAgain, Snapshot, StoreError, reason

#: A Node object, as in JSON.
Node = dict[str, Any]

PREFIX = "xmasq"
_CONNECT_S, _READ_S = 3.0, 5.0
#: A watch is asked for anew after so long, which also ends one that is half open.
_WATCH_S = 60
_GONE = 410
_KEY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


def open_store(network: Network, node: str) -> Kubernetes:
    """See store.open_store()."""
    return Kubernetes(network, node)


class Kubernetes:
    """Implements store.Store."""

    interval = 60.0

    def __init__(self, network: Network, node: str) -> None:
        assert network.datastore is not None
        if not _KEY.fullmatch(network.name):
            raise StoreError(f'name: "{network.name}" can not be part of the name of an annotation')
        self._network = network
        self._node = node
        self._annotation = f"{PREFIX}/{network.name}"
        self._written = ""
        settings = client.Configuration()
        path = network.datastore.options.get("kubeconfig")
        try:
            if path:
                load_kube_config(config_file=path, client_configuration=settings)
            else:
                load_incluster_config(client_configuration=settings)
        except (ConfigException, OSError) as e:
            raise StoreError(f"datastore: {' '.join(str(e).split())}") from e
        settings.retries = False  # the agent does that
        settings.socket_options = SOCKET_OPTIONS
        self._client = client.ApiClient(settings)
        self._api = client.CoreV1Api(self._client)

    # What the agent calls

    def snapshot(self) -> Snapshot:
        """All nodes that have published themselves. Raises StoreError."""
        listed = _ask(self._api.list_node)
        nodes = {_name(node): endpoints for node in listed["items"] if (endpoints := self._endpoints(node))}
        return Snapshot(nodes, str(listed["metadata"]["resourceVersion"]))

    def watch(self, revision: str) -> Iterator[Change]:
        """What changes after a revision. Raises StoreError, and ListAgain when that is too long ago."""
        while True:
            follow = watch.Watch()
            with _errors():
                for event in follow.stream(
                    self._api.list_node,
                    resource_version=revision,
                    timeout_seconds=_WATCH_S,
                    allow_watch_bookmarks=True,
                    _request_timeout=(_CONNECT_S, _WATCH_S + _READ_S),
                ):
                    node = event["raw_object"]
                    revision = str(node["metadata"]["resourceVersion"])
                    if event["type"] in ("ADDED", "MODIFIED"):
                        yield Change(_name(node), self._endpoints(node))
                    elif event["type"] == "DELETED":
                        yield Change(_name(node), ())

    def join(self, build: Build, want: tuple[Net, ...]) -> tuple[Endpoint, ...]:
        """Writes this node's annotation. Raises StoreError, also while the node has no subnet."""
        subnets = self._subnets(self._read())
        if not subnets:
            raise StoreError(
                f'the node "{self._node}" has no podCIDR; does the controller manager give any '
                "(--allocate-node-cidrs, --cluster-cidr)?"
            )
        if self._network.subnets and set(self._network.subnets) != set(subnets):
            raise StoreError(f"subnet: the node's podCIDRs are {', '.join(map(str, subnets))}")
        endpoints = tuple(build(net) for net in subnets)
        self._written = json.dumps([{"address": str(e.vtep), "mac": e.mac} for e in endpoints])
        self._annotate(self._written)
        return endpoints

    def keep(self) -> bool:
        """Whether the annotation is still there. Raises StoreError."""
        return bool(self._written) and self._said(self._read()) == self._written

    def moved(self) -> None:
        """Lets go of idle connections."""
        self._client.rest_client.pool_manager.clear()

    def leave(self) -> None:
        """Removes the annotation. Raises StoreError."""
        self._annotate(None)

    # The API

    def _read(self) -> Node:
        return _ask(self._api.read_node, self._node)

    def _annotate(self, value: str | None) -> None:
        _ask(self._api.patch_node, self._node, {"metadata": {"annotations": {self._annotation: value}}})

    def _said(self, node: Node) -> str:
        return str((node["metadata"].get("annotations") or {}).get(self._annotation) or "")

    def _subnets(self, node: Node) -> tuple[Net, ...]:
        spec = node.get("spec") or {}
        texts = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
        try:
            return tuple(ipaddress.ip_network(text) for text in texts)
        except ValueError:
            return ()

    def _endpoints(self, node: Node) -> tuple[Endpoint, ...]:
        """What a node is to the others. Its subnets are those that Kubernetes gave it, whatever it says."""
        subnets = {net.version: net for net in self._subnets(node)}
        found = []
        try:
            for said in json.loads(self._said(node) or "[]"):
                subnet = subnets.get(ipaddress.ip_address(said["address"]).version)
                if subnet is not None:
                    raw = {"subnet": str(subnet), "address": said["address"], "mac": said["mac"]}
                    found.append(config.endpoint(raw, _name(node), self._network.vni))
        except (ValueError, KeyError, TypeError, CniError):
            return ()
        return tuple(found)


def _name(node: Node) -> str:
    return str(node["metadata"]["name"])


def _ask(call: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """A call of the API, answered in JSON: the client's classes differ from release to release."""
    with _errors():
        answer = call(*args, _preload_content=False, _request_timeout=(_CONNECT_S, _READ_S))
        if not 200 <= answer.status <= 299:  # older releases of the client raise this themselves
            raise ApiException(http_resp=answer)
        found = json.loads(answer.data)
    if not isinstance(found, dict):
        raise StoreError("kubernetes: the answer is not an object")
    return found


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Makes StoreError, or ListAgain, of what the client raises."""
    try:
        yield
    except ApiException as e:
        if e.status == _GONE:
            raise ListAgain from e
        raise StoreError(f"kubernetes: {e.status} {' '.join(str(e.reason).split())}{_message(e)}") from e
    except urllib3.exceptions.ReadTimeoutError as e:
        raise StoreError("kubernetes: no answer in time") from e
    except ValueError as e:
        raise StoreError(f"kubernetes: the answer is not JSON: {e}") from e
    except (urllib3.exceptions.HTTPError, OSError) as e:
        raise StoreError(f"kubernetes: {reason(e)}") from e


def _message(e: ApiException) -> str:
    """The API's own words, from the Status object that it answers with."""
    try:
        return f": {' '.join(json.loads(e.body)['message'].split())}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
