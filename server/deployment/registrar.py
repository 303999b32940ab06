"""Keeps Flower's list of nodes and the proxy's configuration in step with the roster while the coordinator runs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flexmoe_core.checkpoint import write_atomic
from flexmoe_core.enrollment import Roster
from flexmoe_core.errors import FlexMoeError, RunFailed
from server.deployment.control import Control, NoAnswer, control, flower_key
from server.deployment.folder import SECRET_MODE, CoordinatorFolder
from server.deployment.proxy import nginx_configuration

LOOK_S = 2.0
Tell = Callable[[str], None]


def write_proxy_configuration(folder: CoordinatorFolder) -> bool:
    """Write run/nginx.conf; whether it is another one than before."""
    file = folder.path / "run" / "nginx.conf"
    text = nginx_configuration(folder.path, folder.settings, folder.roster).encode()
    if file.exists() and file.read_bytes() == text:
        return False
    write_atomic(file, text, SECRET_MODE)
    return True


def reload_proxy(folder: CoordinatorFolder) -> None:
    """Let a running nginx read its configuration and certificates again; connections stay."""
    run = folder.path / "run"
    with suppress(OSError, ValueError):
        pid = int((run / "nginx.pid").read_text())
        # the file outlives an nginx that was killed, and another process may have its number since
        if str(run / "nginx.conf").encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGHUP)


def bring_into_step(nodes: Control, roster: Roster, tell: Tell) -> None:
    """Unregister who is known and not on the roster, and register who is on it and not known yet."""
    wanted = {flower_key(member.node_key): site for site, member in roster.active.items()}
    known = {node.public_key: node for node in nodes.nodes()}
    for key, node in known.items():
        if key not in wanted:
            nodes.unregister(node)
            tell(f"{node.name or node.node_id} may connect no more")
    for key, site in wanted.items():
        if key in known:
            continue
        try:
            nodes.register(site, roster.active[site].node_key)
        except NoAnswer:
            raise
        except RunFailed as error:
            tell(f"{site} cannot be let in: {error}")  # one hospital's trouble is not the others'
        else:
            tell(f"{site} may connect")


class Registrar(threading.Thread):
    """Looks at the roster every two seconds, until it is told to stop."""

    def __init__(self, folder: CoordinatorFolder, tell: Tell) -> None:
        super().__init__(daemon=True)
        self._folder, self._tell = folder, tell
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Let the thread end."""
        self._stopping.set()
        self.join()

    def run(self) -> None:
        """A roster that cannot be read or a SuperLink that does not answer is tried again, and told once."""
        done, trouble = None, ""
        while not self._stopping.wait(LOOK_S):
            try:
                roster = self._folder.roster
                if roster == done:
                    continue
                if write_proxy_configuration(self._folder):
                    reload_proxy(self._folder)
                with control(self._folder.settings.inside.port, self._folder.authority_certificate) as nodes:
                    bring_into_step(nodes, roster, self._tell)
                done, trouble = roster, ""
            except NoAnswer:
                continue  # the SuperLink is starting, or its supervisor tells what is wrong with it
            except (FlexMoeError, OSError) as error:
                if str(error) != trouble:
                    trouble = str(error)
                    self._tell(trouble)
