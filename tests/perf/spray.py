# SPDX-License-Identifier: Apache-2.0
"""Sends small UDP packets to many addresses in turn; a process of its own, to run in a container.

`python -m tests.perf.spray NET COUNT FLOWS PASSES RATE`: COUNT packets a pass, to FLOWS addresses of each
of the /16 networks NET,NET,… in turn, at most RATE a second (0: as fast as it goes). Prints packets a second.
"""

from __future__ import annotations

import socket
import sys
import time

PORT = 9000


def addresses(nets: list[str], flows: int) -> list[str]:
    """The first `flows` addresses, dealt out over the networks: "10.16" means 10.16.0.0/16."""
    found = []
    for i in range(flows):
        number = i // len(nets) + 1
        found.append(f"{nets[i % len(nets)]}.{number >> 8}.{number & 255}")
    return found


def main() -> None:
    """See above."""
    nets, count, flows, passes, rate = (sys.argv[1].split(","), *map(int, sys.argv[2:6]))
    found = addresses(nets, flows)
    # As many objects for one flow as for many, so that this program's own cost is the same.
    targets = [(found[i % flows][:4] + found[i % flows][4:], PORT) for i in range(count)]
    payload = bytes(18)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        send = one.sendto
        sent = 0
        begin = time.monotonic()
        for _ in range(passes):
            for target in targets:
                send(payload, target)
                sent += 1
                if rate and not sent % 100 and (ahead := sent / rate - (time.monotonic() - begin)) > 0:
                    time.sleep(ahead)
        print(round(sent / (time.monotonic() - begin)))


if __name__ == "__main__":
    main()
