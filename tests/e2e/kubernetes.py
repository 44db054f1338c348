# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the Kubernetes API server: Node objects, in the form of a real one's answers.

What is served follows the API's documented contract ("Kubernetes API concepts": lists with a resourceVersion,
watches from one, 410 when it is too old, bookmarks, merge patches), on a host of the lab.
"""

from __future__ import annotations

import copy
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.lab import Host

TOKEN = "token-of-the-service-account"
#: What a kubelet registers, as `kubectl get node -o json` shows it, less what is of no interest here.
NODE: dict[str, Any] = json.loads((Path(__file__).parent / "kubernetes-node.json").read_text())


class Kubernetes:
    """The API on a host of the lab. ``nodes`` are its Node objects by name."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.url = f"http://{host.address}:6443"
        self.nodes: dict[str, dict[str, Any]] = {}
        self.version = 1000
        self.oldest = 1000
        #: The longest that a watch lasts, in s.
        self.limit = 60.0
        self.requests: list[str] = []
        self._events: list[tuple[int, str, dict[str, Any]]] = []
        self._changed = threading.Condition()
        self._server: ThreadingHTTPServer | None = None
        self._connections: list[socket.socket] = []
        self.start()
        host.lab.at_exit(self.stop)

    def kubeconfig(self) -> str:
        """The path of one for the agents."""
        path = self.host.lab.tmp / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": self.url}}],
            "users": [{"name": "agent", "user": {"token": TOKEN}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "agent"}}],
        }
        path.write_text(json.dumps(config))  # JSON is YAML
        return str(path)

    def start(self) -> None:
        """Begins to serve, with all that it knew before."""
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                api._connections.append(self.connection)

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                api._get(self)

            def do_PATCH(self) -> None:
                api._patch(self)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *_: Any) -> None:
                pass  # a connection that stop() has cut

        self._server = self.host.inside(lambda: Server((self.host.address, 6443), Handler))
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Stops, and cuts all connections."""
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self._connections.clear()
        with self._changed:
            self._changed.notify_all()

    # What other components do

    def add(self, host: Host, cidrs: list[str]) -> None:
        """A kubelet registers its node, and the controller manager gives it subnets."""
        node = copy.deepcopy(NODE)
        node["metadata"]["name"] = node["metadata"]["labels"]["kubernetes.io/hostname"] = host.role
        node["status"]["addresses"][0]["address"] = host.address
        if cidrs:
            node["spec"] = {"podCIDR": cidrs[0], "podCIDRs": cidrs}
        self._put("ADDED", node)

    def change(self, name: str, **annotations: str | None) -> None:
        """Somebody changes something of a node."""
        with self._changed:
            node = copy.deepcopy(self.nodes[name])
        for key, value in annotations.items():
            node["metadata"]["annotations"][key] = value
        self._put("MODIFIED", node)

    def delete(self, name: str) -> None:
        """A node is taken out of the cluster."""
        self._put("DELETED", self.nodes[name])

    def compact(self) -> None:
        """Forgets what has happened, as etcd does after five minutes."""
        with self._changed:
            self.oldest = self.version
            self._events.clear()

    def _put(self, kind: str, node: dict[str, Any]) -> dict[str, Any]:
        with self._changed:
            self.version += 1
            node = copy.deepcopy(node)
            node["metadata"]["resourceVersion"] = str(self.version)
            if kind == "DELETED":
                del self.nodes[node["metadata"]["name"]]
            else:
                self.nodes[node["metadata"]["name"]] = node
            self._events.append((self.version, kind, node))
            self._changed.notify_all()
            return node

    # Requests

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        watching = query.get("watch", "").lower() in ("true", "1")
        self.requests.append(f"{'WATCH' if watching else 'GET'} {url.path}")
        if not self._allowed(request):
            return
        if url.path != "/api/v1/nodes":
            with self._changed:
                node = self.nodes.get(url.path.rpartition("/")[2])
            if node is None:
                self._fail(request, 404, "NotFound", f'nodes "{url.path.rpartition("/")[2]}" not found')
            else:
                self._answer(request, 200, node)
        elif watching:
            self._watch(request, int(query["resourceVersion"]), float(query["timeoutSeconds"]))
        else:
            with self._changed:
                items = sorted(self.nodes.values(), key=lambda node: str(node["metadata"]["name"]))
                listed = {
                    "kind": "NodeList",
                    "apiVersion": "v1",
                    "metadata": {"resourceVersion": str(self.version)},
                    "items": items,
                }
            self._answer(request, 200, listed)

    def _watch(self, request: BaseHTTPRequestHandler, version: int, seconds: float) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()

        def send(kind: str, item: dict[str, Any]) -> None:
            line = json.dumps({"type": kind, "object": item}).encode() + b"\n"
            request.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            request.wfile.flush()

        end = time.monotonic() + min(seconds, self.limit)
        if version < self.oldest:
            send(
                "ERROR", self._status(410, "Expired", f"too old resource version: {version} ({self.oldest})")
            )
            end = 0.0
        elif version < self.version:
            bookmark = {"kind": "Node", "apiVersion": "v1", "metadata": {"resourceVersion": str(version)}}
            send("BOOKMARK", bookmark)
        while time.monotonic() < end and self._server is not None:
            with self._changed:
                news = [event for event in self._events if event[0] > version]
                if not news:
                    self._changed.wait(0.2)
            for number, kind, node in news:
                send(kind, node)
                version = number
        request.wfile.write(b"0\r\n\r\n")

    def _patch(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        self.requests.append(f"PATCH {request.path} {request.headers['Content-Type']}")
        if not self._allowed(request):
            return
        name = request.path.rpartition("/")[2]
        with self._changed:
            node = copy.deepcopy(self.nodes.get(name))
        if node is None:
            self._fail(request, 404, "NotFound", f'nodes "{name}" not found')
            return
        for key, value in body["metadata"]["annotations"].items():
            if value is None:
                node["metadata"]["annotations"].pop(key, None)
            else:
                node["metadata"]["annotations"][key] = value
        self._answer(request, 200, self._put("MODIFIED", node))

    def _allowed(self, request: BaseHTTPRequestHandler) -> bool:
        if request.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._fail(request, 401, "Unauthorized", "Unauthorized")
        return False

    @staticmethod
    def _status(code: int, reason: str, message: str) -> dict[str, Any]:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }

    def _fail(self, request: BaseHTTPRequestHandler, code: int, reason: str, message: str) -> None:
        self._answer(request, code, self._status(code, reason, message))

    def _answer(self, request: BaseHTTPRequestHandler, code: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        request.send_response(code)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)
