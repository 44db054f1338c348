# SPDX-License-Identifier: Apache-2.0
"""Small traffic of known content, made by threads of this process on sockets inside namespaces."""

from __future__ import annotations

import hashlib
import os
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass

from .namespace import Namespace
from .process import LabError, patience

_CHUNK = 1 << 18
_HEADER = struct.Struct("!QQ")


@dataclass(frozen=True)
class TransferResult:
    """A TCP transfer whose content arrived unchanged."""

    size: int
    seconds: float
    digest: str


def tcp_transfer(
    source: Namespace, target: Namespace, size: int = 1_000_000, *, port: int = 0, timeout: float = 20.0
) -> TransferResult:
    """Sends ``size`` random bytes over TCP from ``source`` to ``target``, and compares the hashes.

    No two blocks are alike, so that lost, doubled and swapped parts all change the hash. Raises
    :class:`LabError` when the hashes differ or it takes more than ``timeout`` seconds.
    """
    deadline = time.monotonic() + patience(timeout)
    received: list[str] = []
    failure: list[Exception] = []

    def receive(listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
            digest = hashlib.blake2b(digest_size=16)
            with connection:
                while data := _before(deadline, connection).recv(_CHUNK):
                    digest.update(data)
            received.append(digest.hexdigest())
        except OSError as error:
            failure.append(error)

    digest = hashlib.blake2b(digest_size=16)
    begin = time.monotonic()
    with target.socket(kind=socket.SOCK_STREAM) as listener, source.socket(kind=socket.SOCK_STREAM) as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((target.address, port))
        listener.listen(1)
        thread = threading.Thread(target=receive, args=(_before(deadline, listener),), daemon=True)
        thread.start()
        try:
            _before(deadline, client).connect(listener.getsockname())
            left = size
            while left > 0:
                block = os.urandom(min(left, _CHUNK))
                digest.update(block)
                _before(deadline, client).sendall(block)
                left -= len(block)
            client.shutdown(socket.SHUT_WR)
        except OSError as error:
            failure.append(error)
        thread.join()
    if failure:
        raise LabError(f"TCP from {source.name} to {target.name}: {failure[0]}")
    if received != [digest.hexdigest()]:
        raise LabError(f"TCP from {source.name} to {target.name}: the content changed on the way")
    return TransferResult(size, time.monotonic() - begin, received[0])


def _before(deadline: float, one: socket.socket) -> socket.socket:
    one.settimeout(max(0.001, deadline - time.monotonic()))
    return one


class UdpService:
    """Receives datagrams on ``port`` of a namespace until it is closed, and sends them back if ``echo``.

    ``datagrams`` and ``octets`` count what arrived. Port 0 means a free one; ``port`` is the real one.
    It closes with the lab at the latest.
    """

    def __init__(self, where: Namespace, *, port: int = 0, echo: bool = True) -> None:
        self.echo = echo
        self.datagrams = 0
        self.octets = 0
        self._socket = where.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._socket.bind((where.address, port))
        self._socket.settimeout(0.05)
        self.port: int = self._socket.getsockname()[1]
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"udp in {where.name}")
        self._thread.start()
        where.lab.at_exit(self.close)

    def _work(self) -> None:
        while not self._end.is_set():
            try:
                data, sender = self._socket.recvfrom(65535)
                self.datagrams += 1
                self.octets += len(data)
                if self.echo:
                    self._socket.sendto(data, sender)
            except OSError:
                continue  # nothing came; or an ICMP error, or a full queue: the sender counts the loss

    def close(self) -> None:
        """Stops; a second call does nothing."""
        self._end.set()
        self._thread.join()
        self._socket.close()

    def __enter__(self) -> UdpService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class EchoResult:
    """What came back of numbered datagrams; ``reordered``: after one with a higher number."""

    sent: int
    received: int
    duplicates: int
    reordered: int

    @property
    def lost(self) -> int:
        """How many never came back."""
        return self.sent - self.received


def udp_echo(
    source: Namespace,
    target: Namespace,
    *,
    count: int = 100,
    size: int = 64,
    interval: float = 0.001,
    wait: float = 2.0,
) -> EchoResult:
    """Sends ``count`` numbered datagrams of ``size`` bytes to an echo in ``target``, and counts answers.

    One leaves every ``interval`` seconds, or later on a machine that is busy; at the end it waits until none
    has come for ``wait`` seconds.
    Answers with another content than what was sent raise :class:`LabError`.
    """
    run = int.from_bytes(os.urandom(8), "big")
    seen: set[int] = set()
    duplicates = reordered = 0
    last = -1

    def content(number: int) -> bytes:
        return _HEADER.pack(run, number).ljust(size, bytes([number & 255]))

    with UdpService(target) as echo, source.socket() as client:
        client.bind((source.address, 0))
        client.connect((target.address, echo.port))
        client.setblocking(False)
        begin = heard = time.monotonic()
        number = 0
        while len(seen) < count:
            now = time.monotonic()
            if number < count and now >= begin + number * interval:
                client.send(content(number))
                number += 1
                heard = time.monotonic()
            elif number == count and now >= heard + patience(wait):
                break
            due = begin + number * interval if number < count else heard + patience(wait)
            if not select.select([client], [], [], max(0.0, due - time.monotonic()))[0]:
                continue
            data = client.recv(65535)
            heard = time.monotonic()
            got = _HEADER.unpack_from(data)[1] if len(data) >= _HEADER.size else -1
            if not 0 <= got < count or data != content(got):
                raise LabError(f"UDP from {source.name} to {target.name}: an answer has another content")
            if got in seen:
                duplicates += 1
            elif got < last:
                reordered += 1
            seen.add(got)
            last = max(last, got)
    return EchoResult(count, len(seen), duplicates, reordered)
