"""What Flower's SuperExec starts for a message: asks the standby process for a copy, or starts the guard itself.

python -I -S launch.py NODE GUARD --runtime-api-address ... --token ...
"""

from __future__ import annotations

import json
import os
import socket
import sys

PATIENCE_S = 5.0


def ask_standby(node: str, arguments: list[str]) -> bool:
    """Whether a copy of the standby process serves the message."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(f"{node}/run/standby.sock")
            connection.sendall(json.dumps(arguments).encode())
            return connection.recv(1) == b"+"
    except OSError:
        return False


def main() -> None:
    """Hand the message over, at the price of a fresh process where nobody stands by."""
    node, guard, *arguments = sys.argv[1:]
    if not ask_standby(node, arguments):
        os.execv(sys.executable, [sys.executable, "-P", guard, node, *arguments])


if __name__ == "__main__":
    main()
