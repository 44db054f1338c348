# SPDX-License-Identifier: Apache-2.0
"""etcd as the datastore, version 3.4 or later, by its JSON gateway (etcd's dev-guide/api_grpc_gateway).

A key for each subnet: PREFIX/NETWORK/subnets/10.244.3.0-24. Its value says which node has it, and where;
it goes with the node's lease. That the key is made only where there is none is what keeps two nodes from
having one subnet.
"""

from __future__ import annotations

import base64
import ipaddress
import itertools
import json
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import urllib3

from . import config
from .config import Endpoint, Net, Network
from .errors import CniError
from .store import SOCKET_OPTIONS, Build, Change, ListAgain, Snapshot, StoreError, reason

LEASE_DEFAULT_S = 86400
KEEP_MOST_S = 20.0
_CONNECT_S, _READ_S, _WATCH_S = 3.0, 5.0, 30.0
_TRIES = 20
_AUTHENTICATE = "/v3/auth/authenticate"


def open_store(network: Network, node: str) -> Etcd:
    """See store.open_store()."""
    return Etcd(network, node)


class Etcd:
    """Implements store.Store."""

    def __init__(self, network: Network, node: str) -> None:
        assert network.datastore is not None
        options = network.datastore.options
        self._network = network
        self._node = node
        self._ttl = int(options.get("lease") or LEASE_DEFAULT_S)
        self.interval = min(self._ttl / 3, KEEP_MOST_S)
        prefix = str(options.get("prefix") or "/xmasq").rstrip("/")
        self._prefix = f"{prefix}/{network.name}/subnets/"
        self._lease: str | None = None
        self._api = _Gateway(options)

    # What the agent calls

    def snapshot(self) -> Snapshot:
        """All that is published. Raises StoreError."""
        items, revision = self._items()
        nodes = {
            key: (endpoint,) for key, (_, value) in items.items() if (endpoint := self._endpoint(key, value))
        }
        return Snapshot(nodes, revision)

    def watch(self, revision: str) -> Iterator[Change]:
        """What changes after a revision. Raises StoreError, and ListAgain after a compaction."""
        create = {
            "key": _b64(self._prefix),
            "range_end": _b64(_end(self._prefix)),
            "start_revision": str(int(revision) + 1),
        }
        while True:
            for answer in self._api.stream("/v3/watch", {"create_request": create}):
                result = answer.get("result") or {}
                if "error" in answer or result.get("canceled"):
                    raise ListAgain
                for event in result.get("events") or ():
                    kv = event["kv"]
                    key = _text(kv["key"])
                    endpoint = None if event.get("type") == "DELETE" else self._endpoint(key, kv.get("value"))
                    yield Change(key, (endpoint,) if endpoint else ())
                if result.get("events"):
                    create["start_revision"] = str(int(result["header"]["revision"]) + 1)

    def join(self, build: Build, want: tuple[Net, ...]) -> tuple[Endpoint, ...]:
        """Publishes this node. Raises StoreError, also if a subnet is another node's, or none is free."""
        families = [net.version for net in want or self._network.cluster]
        self.keep()  # or a lease that has ended is noticed by a refusal
        made = []
        for family in families:
            wanted = next((net for net in want if net.version == family), None)
            made.append(self._claim(build, family, wanted))
        return tuple(made)

    def keep(self) -> bool:
        """Renews the lease. Raises StoreError."""
        if self._lease is None:
            return False
        answer = self._api.call("/v3/lease/keepalive", {"ID": self._lease})
        if int((answer.get("result") or {}).get("TTL") or 0) <= 0:
            self._lease = None
            return False
        return True

    def moved(self) -> None:
        """Lets go of idle connections."""
        self._api.forget()

    def leave(self) -> None:
        """Deletes this node's keys. Raises StoreError."""
        items, _ = self._items()
        for key, (revision, value) in items.items():
            if _node(value) == self._node:
                self._txn(key, revision, {"request_delete_range": {"key": _b64(key)}})

    # Claiming a subnet

    def _claim(self, build: Build, family: int, want: Net | None) -> Endpoint:
        for _ in range(_TRIES):
            items, _ = self._items()
            before = next(
                (k for k, (_, v) in items.items() if _node(v) == self._node and _is(k, family)), None
            )
            if want is not None:
                net = want
            elif before is not None:
                net = _subnet(before)
            else:
                net = self._free(items, family)
            key = self._key(net)
            self._check_overlap(items, key, net)
            if before is not None and before != key:
                # The configuration gives the node another subnet than it had.
                self._txn(before, items[before][0], {"request_delete_range": {"key": _b64(before)}})
            endpoint = build(net)
            if self._publish(key, items.get(key, ("0", ""))[0], endpoint):
                return endpoint
        raise StoreError(f"no subnet: others were faster {_TRIES} times")

    def _check_overlap(self, items: dict[str, tuple[str, str]], key: str, net: Net) -> None:
        for other, (_, value) in items.items():
            owner = _node(value)
            if owner != self._node and (has := _subnet_or_none(other)) and has.overlaps(net):
                raise StoreError(f'the subnet {net} overlaps {has}, which belongs to the node "{owner}"')

    def _free(self, items: dict[str, tuple[str, str]], family: int) -> Net:
        """A subnet that nobody has: the first from a place on that depends on the node's name."""
        whole = next((net for net in self._network.cluster if net.version == family), None)
        if whole is None:
            raise StoreError(f"network: has no part for IPv{family}")
        length = self._network.subnet_length if family == config.IPV4 else 64
        if not whole.prefixlen <= length <= whole.max_prefixlen - 2:
            raise StoreError(f"subnetLength: {length} does not fit into network {whole}")
        taken = [net for key in items if (net := _subnet_or_none(key)) and net.version == family]
        count = 1 << min(length - whole.prefixlen, 20)
        step = 1 << (whole.max_prefixlen - length)
        first = int.from_bytes(sha256(self._node.encode()).digest()[:4], "big") % count
        for number in itertools.chain(range(first, count), range(first)):
            base = whole.network_address + number * step
            net = ipaddress.ip_network(f"{base}/{length}")
            if not any(net.overlaps(other) for other in taken):
                return net
        raise StoreError(f"network {whole} has no free subnet of length {length}: {len(taken)} are taken")

    def _publish(self, key: str, revision: str, endpoint: Endpoint) -> bool:
        value = {"node": self._node, "address": str(endpoint.vtep), "mac": endpoint.mac}
        put = {"key": _b64(key), "value": _b64(json.dumps(value)), "lease": self._granted()}
        return self._txn(key, revision, {"request_put": put})

    def _granted(self) -> str:
        if self._lease is None:
            self._lease = str(self._api.call("/v3/lease/grant", {"TTL": str(self._ttl)})["ID"])
        return self._lease

    # etcd

    def _items(self) -> tuple[dict[str, tuple[str, str]], str]:
        """All keys of the network: (revision, value); and the datastore's revision."""
        answer = self._api.call(
            "/v3/kv/range", {"key": _b64(self._prefix), "range_end": _b64(_end(self._prefix))}
        )
        items = {
            _text(kv["key"]): (str(kv["mod_revision"]), kv.get("value", "")) for kv in answer.get("kvs") or ()
        }
        return items, str(answer["header"]["revision"])

    def _txn(self, key: str, revision: str, request: dict[str, Any]) -> bool:
        """Carries a request out if the key is still at this revision, "0" for a key that is not there."""
        compare = {"key": _b64(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision}
        answer = self._api.call("/v3/kv/txn", {"compare": [compare], "success": [request]})
        return bool(answer.get("succeeded"))

    def _key(self, net: Net) -> str:
        return self._prefix + str(net).replace("/", "-")

    def _endpoint(self, key: str, value: str | None) -> Endpoint | None:
        """What a key says; None for one that makes no sense, which somebody else must have put there."""
        try:
            said = json.loads(_text(value or ""))
            raw = {"subnet": str(_subnet(key)), "address": said["address"], "mac": said["mac"]}
            return config.endpoint(raw, key, self._network.vni)
        except (ValueError, KeyError, TypeError, CniError):
            return None


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode(errors="replace")


def _end(prefix: str) -> str:
    """The first key behind all with a prefix, which ends in an ASCII character."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _node(value: str) -> str:
    try:
        return str(json.loads(_text(value))["node"])
    except (ValueError, KeyError, TypeError):
        return ""


def _subnet(key: str) -> Net:
    return ipaddress.ip_network(key.rpartition("/")[2].replace("-", "/"))


def _subnet_or_none(key: str) -> Net | None:
    try:
        return _subnet(key)
    except ValueError:
        return None


def _is(key: str, family: int) -> bool:
    net = _subnet_or_none(key)
    return net is not None and net.version == family


class _Gateway:
    """HTTP to whichever of the members answers."""

    def __init__(self, options: Any) -> None:
        self._urls = [url.rstrip("/") for url in options.get("endpoints") or ["http://127.0.0.1:2379"]]
        self._username = options.get("username")
        self._password_file = options.get("passwordFile")
        self._token: str | None = None
        self._lock = threading.Lock()
        more: dict[str, Any] = {}
        for ours, theirs in (("caFile", "ca_certs"), ("certFile", "cert_file"), ("keyFile", "key_file")):
            if options.get(ours):
                more[theirs] = options[ours]
        self._pool = urllib3.PoolManager(retries=False, socket_options=SOCKET_OPTIONS, **more)

    def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request, one answer. Raises StoreError."""
        response = self._post(path, body, urllib3.Timeout(connect=_CONNECT_S, read=_READ_S), stream=False)
        return _object(response.data)

    def forget(self) -> None:
        """Closes idle connections."""
        self._pool.clear()

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """One request, an answer for each line; ends when there was none for a while. Raises StoreError."""
        response = self._post(path, body, urllib3.Timeout(connect=_CONNECT_S, read=_WATCH_S), stream=True)
        rest = b""
        try:
            for chunk in response.stream(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (_object(line) for line in lines if line.strip())
        except urllib3.exceptions.ReadTimeoutError:
            return  # quiet, or half open: a new request tells
        except (urllib3.exceptions.HTTPError, OSError) as e:
            raise StoreError(f"etcd: the watch ended: {reason(e)}") from e
        finally:
            response.close()
        raise StoreError("etcd: the watch ended")

    def _post(self, path: str, body: dict[str, Any], timeout: urllib3.Timeout, *, stream: bool) -> Any:
        failed = ""
        for url in list(self._urls):
            try:
                response = self._authorised(url, path, body, timeout, stream)
            except (urllib3.exceptions.HTTPError, OSError) as e:
                failed = f"etcd: {url}: {reason(e)}"
                self._last(url)
                continue
            if response.status == 200:
                return response
            failed = f"etcd: {url}: {_complaint(response.data, response.status)}"
            if response.status < 500:
                break  # it is the request, so another member would say the same
            self._last(url)
        raise StoreError(" ".join(failed.split()))

    def _authorised(
        self, url: str, path: str, body: dict[str, Any], timeout: urllib3.Timeout, stream: bool
    ) -> Any:
        def post(path: str, body: dict[str, Any], token: str | None, stream: bool) -> Any:
            headers = {"Authorization": token} if token else {}
            return self._pool.request(
                "POST",
                url + path,
                body=json.dumps(body),
                headers={"Content-Type": "application/json", **headers},
                timeout=timeout,
                preload_content=not stream,
            )

        response = post(path, body, self._token, stream)
        if response.status in (400, 401, 403) and self._username:
            # No token (400; 403 with a client's certificate), or one of before a restart (401).
            response.drain_conn()
            self._token = None
            response = post(_AUTHENTICATE, self._credentials(), None, False)
            if response.status == 200:
                self._token = _object(response.data).get("token")
                response = post(path, body, self._token, stream)
        return response

    def _credentials(self) -> dict[str, Any]:
        try:
            password = Path(self._password_file).read_text().rstrip("\n") if self._password_file else ""
        except OSError as e:
            raise StoreError(f"datastore.passwordFile: {self._password_file}: {e.strerror}") from e
        return {"name": self._username, "password": password}

    def _last(self, url: str) -> None:
        """Others are asked first from now on."""
        with self._lock:
            if self._urls[0] == url:
                self._urls = [*self._urls[1:], url]


def _complaint(data: bytes, status: int) -> str:
    """What an answer that is no success says: JSON as a rule, text where the gateway itself refuses."""
    try:
        said = _object(data)
    except StoreError:
        return f"{status} {data[:200].decode(errors='replace')}"
    return str(said.get("message") or said.get("error") or status)


def _object(data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except ValueError as e:
        raise StoreError(f"etcd: the answer is not JSON: {data[:60]!r}") from e
    return answer if isinstance(answer, dict) else {}
