# SPDX-License-Identifier: Apache-2.0
"""The second guest: runs the commands that the first one sends it, one JSON object a line."""

from __future__ import annotations

import json
import socket
import subprocess

from ..progress import settle
from .ends import CONTROL, PORT, prepare


def main() -> None:
    """Serves until the machine is taken away."""
    prepare(2)
    settle()
    listener = socket.create_server((CONTROL.format(2), PORT))
    print("agent: listening", flush=True)
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rw") as lines:
            for line in lines:
                request = json.loads(line)
                try:
                    done = subprocess.run(
                        request["run"], capture_output=True, text=True, timeout=request["timeout"]
                    )
                    answer = {"code": done.returncode, "out": done.stdout, "err": done.stderr}
                except subprocess.TimeoutExpired:
                    answer = {"code": -1, "out": "", "err": f"still running after {request['timeout']} s"}
                print(json.dumps(answer), file=lines, flush=True)


if __name__ == "__main__":
    main()
