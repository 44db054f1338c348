# SPDX-License-Identifier: Apache-2.0
"""What was begun for which container: so that a crash can be cleaned up after, and addresses be given back.

A file is written before the first address is asked for and removed after the last was given back.
The files go with a reboot, as the containers' devices do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from .config import Network
from .errors import IO_FAILURE, CniError


@dataclass(frozen=True, slots=True)
class Attachment:
    """A container's interface in a network.

    netns: the path that ADD was given; "" if unknown. done: whether ADD came to its end.
    """

    container: str
    ifname: str
    netns: str = ""
    done: bool = False

    def veth(self, network: Network) -> str:
        """The host's end of its veth pair: a name that is found again without any record."""
        text = "\0".join((network.name, self.container, self.ifname))
        return "xmq" + sha256(text.encode()).hexdigest()[:12]

    def alias(self, network: Network) -> str:
        """What the host's end says of itself (IFLA_IFALIAS, at most 255 bytes)."""
        return f"xmasq-cni {network.name} {self.container} {self.ifname}"[:255]


def _path(network: Network, attachment: Attachment) -> Path:
    return Path(network.run_dir, network.name, "attachments", attachment.veth(network))


def find(network: Network, attachment: Attachment) -> Attachment | None:
    """The record of an attachment; a damaged one counts as one."""
    try:
        return Attachment(**json.loads(_path(network, attachment).read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        return attachment


def write(network: Network, attachment: Attachment) -> None:
    """Notes that setting up begins. Raises CniError."""
    path = _path(network, attachment)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        path.write_text(json.dumps(asdict(attachment)) + "\n")
    except OSError as e:
        raise CniError(IO_FAILURE, f"runDir: {path}: {e.strerror}") from e


def remove(network: Network, attachment: Attachment) -> None:
    """Notes that nothing is left. Raises CniError."""
    path = _path(network, attachment)
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        raise CniError(IO_FAILURE, f"runDir: {path}: {e.strerror}") from e


def every(network: Network) -> Iterator[Attachment]:
    """All attachments that there is a readable record of."""
    directory = Path(network.run_dir, network.name, "attachments")
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        try:
            yield Attachment(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            continue
