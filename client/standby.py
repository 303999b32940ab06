"""Has everything imported that a message needs, and lets a copy of itself serve each one.

    python -P standby.py NODE

Flower starts a process for every message. Most of its time went into importing PyTorch, a second and a half or
more; a copy of a process that has done so is there in a hundredth of a second. Like the guard, which the copies run,
this is one file that imports none of our packages: a bundle brings its own. A copy has no other rights than the
process that Flower would have started.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import torch

SOCKET = Path("run") / "standby.sock"
MODULES = (
    "cryptography.hazmat.primitives.asymmetric.ed25519",
    "cryptography.x509",
    "flwr.clientapp",
    "numpy",
    "pandas",
    "pydantic",
    "safetensors.numpy",
    "scipy.sparse.linalg",
    "torch.func",
)
PARENT = "--parent-pid"
LARGEST_REQUEST = 1 << 16
READY = b"+"


def serve(path: Path) -> list[str]:
    """Wait for requests for ever; return in a copy of this process, with the arguments that it was asked to serve."""
    path.unlink(missing_ok=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel takes away the copies that have ended
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection, suppress(OSError, ValueError):
                connection.settimeout(5.0)
                arguments = json.loads(connection.recv(LARGEST_REQUEST))
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    return [str(argument) for argument in arguments]
                connection.sendall(READY)


def main() -> None:
    """Import, wait, and in each copy serve one message under the guard."""
    node = Path(sys.argv[1])
    for module in MODULES:
        importlib.import_module(module)
    # the first optimizer of a process imports PyTorch's compiler, which takes as long as PyTorch
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    # by its path: this folder on sys.path would offer its files to whoever imports a module named like one
    spec = importlib.util.spec_from_file_location("guard", Path(__file__).with_name("guard.py"))
    assert spec is not None and spec.loader is not None
    guard = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(guard)
    sys.argv = ["guard.py", str(node), *with_this_parent(serve(node / SOCKET))]
    guard.main()


def with_this_parent(arguments: list[str]) -> list[str]:
    """Flower's process ends when its parent does: that is the standby process now, and not the SuperExec."""
    changed = list(arguments)
    if PARENT in changed[:-1]:
        changed[changed.index(PARENT) + 1] = str(os.getppid())
    return changed


if __name__ == "__main__":
    main()
