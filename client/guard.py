"""Runs a coordinator's code at a hospital, if the hospital has allowed it: stands in for Flower's ``flwr-clientapp``.

    python -P guard.py NODE --runtime-api-address ... --token ...

A bundle brings its own copies of our packages. This program is therefore one file, with the standard library and
Flower alone, and nothing of a bundle is unpacked before its SHA-256 has been found in NODE/allowed_bundles.txt.
Every message unpacks it anew, into a folder of its own, so that no file that was changed on disk is ever imported.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flwr.app import Context
from flwr.app.error import Error
from flwr.cli.install import install_from_fab
from flwr.clientapp import ClientApp
from flwr.clientapp.utils import get_load_client_app_fn
from flwr.common.config import get_project_dir
from flwr.common.constant import ErrorCode
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.cli.flwr_clientapp import flwr_clientapp
from flwr.supernode.runtime import run_clientapp as runtime

ALLOWED_FILE = "allowed_bundles.txt"
SITE_LOG = Path("state") / "site.log"
UNPACKED_PREFIX = "bundle-"
OWN_WORDS = re.compile(r"the site could not answer; its log has the details under [0-9a-f]{8}")
REPLACED = ("install_from_fab", "get_load_client_app_fn", "push_task_output", "Error")


class Refused(Exception):
    """A bundle that does not run here; the text is what the coordinator learns."""


class Guard:
    """Decides about the bundle of one message. ``node`` is the hospital's node folder."""

    def __init__(self, node: Path) -> None:
        self._node = node
        self._digest = ""
        self._installed = Path()
        self._push_task_output: Callable[..., None] = runtime.push_task_output

    def take_over(self) -> None:
        """Put this guard's functions in place of Flower's. Raises AttributeError when this Flower has others."""
        for name in REPLACED:
            getattr(runtime, name)
        vars(runtime).update(
            install_from_fab=self.install,
            get_load_client_app_fn=self.loader,
            push_task_output=self.push_task_output,
            Error=self.error,
        )

    def install(self, content: bytes, *_: object, **__: object) -> Path:
        """Unpack an allowed bundle into a new folder. Raises Refused for any other."""
        digest = hashlib.sha256(content).hexdigest()
        if digest not in allowed_bundles(self._node / ALLOWED_FILE):
            self.log(
                f"refused a bundle that is not on this site's list: {digest}. Nothing of it was unpacked. If you "
                f"trust it, allow it with: flexmoe-client allow {self._node} {digest}"
            )
            raise Refused(f"this bundle is not on the site's list: {digest}")
        home = _own_folder(self._node / "flower")
        os.environ["FLWR_HOME"] = str(home)
        os.environ["FLEXMOE_BUNDLE"] = digest
        self._digest, self._installed = digest, install_from_fab(content, skip_prompt=True)
        return self._installed

    def loader(
        self, default_app_ref: str, app_path: str | None, multi_app: bool
    ) -> Callable[[str, str, str], ClientApp]:
        """Flower's loader, for the folder that was unpacked here and no other."""
        load = get_load_client_app_fn(default_app_ref, app_path, multi_app)

        def load_unpacked(fab_id: str, fab_version: str, fab_hash: str) -> ClientApp:
            named = get_project_dir(fab_id, fab_version, fab_hash)
            if fab_hash != self._digest or named.resolve() != self._installed.resolve():
                self.log(f"refused a message that names another bundle than it brings ({self._digest})")
                raise Refused("the message names another bundle than it brings")
            return load(fab_id, fab_version, fab_hash)

        return load_unpacked

    def error(self, code: int, reason: str | None = None) -> Error:
        """What the coordinator learns of an exception: no text of it, but an id under which the site's log has it."""
        del reason
        exception = sys.exc_info()[1]
        if isinstance(exception, Refused):
            return Error(ErrorCode.INVALID_FAB, str(exception))
        if exception is not None and OWN_WORDS.fullmatch(str(exception)):
            return Error(code, str(exception))
        error_id = secrets.token_hex(4)
        self.log(f"{error_id} {''.join(traceback.format_exception(exception))}")
        return Error(code, f"the site could not run the bundle; its log has the details under {error_id}")

    def push_task_output(
        self, client: RuntimeHttpClient, context: Context | None, sub_status: str, details: str
    ) -> None:
        """Tell the SuperNode how the task ended, without the text of an exception."""
        words = "the site's log has the details" if details else ""
        self._push_task_output(client, context, sub_status, words)

    def log(self, text: str) -> None:
        """Append to the site's own log, which never leaves it."""
        print(text, flush=True)
        with suppress(OSError):
            file = self._node / SITE_LOG
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w") as stream:
                stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text.rstrip()}\n")


def allowed_bundles(file: Path) -> frozenset[str]:
    """The hashes in the site's list, one a line, '#' before comments; none when it cannot be read."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return frozenset()
    words = (line.partition("#")[0].strip().lower() for line in lines)
    return frozenset(word for word in words if re.fullmatch("[0-9a-f]{64}", word))


def _own_folder(home: Path) -> Path:
    """A new folder for this process alone, gone when it ends; those of processes that were killed go now."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in home.glob(f"{UNPACKED_PREFIX}*"):
        try:
            os.kill(int(left.name.split("-")[1]), 0)
        except (OSError, ValueError):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{UNPACKED_PREFIX}{os.getpid()}-", dir=home))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def main() -> None:
    """Serve one message of the SuperNode that the arguments name."""
    node = Path(sys.argv[1])
    sys.argv = ["flwr-clientapp", *sys.argv[2:]]
    Guard(node).take_over()
    flwr_clientapp()


if __name__ == "__main__":
    main()
