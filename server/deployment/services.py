"""The coordinator's processes: SuperLink, its executor for the coordinator's App, and nginx before them."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

from flexmoe_core.supervision import Service
from server.deployment.folder import CoordinatorFolder

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
TASK_POLL_S = "0.1"
"""How often the executor looks for work; Flower's own default is a second."""
HERE = "127.0.0.1"


def services(folder: CoordinatorFolder) -> list[Service]:
    """In the order in which they start."""
    inside, path = folder.settings.inside, folder.path
    superlink = (
        *_script("flower-superlink", "--host", HERE, "--port", str(inside.port)),
        *("--ssl-ca-certfile", str(path / "authority.crt")),
        *("--ssl-certfile", str(path / "server.crt"), "--ssl-keyfile", str(path / "server.key")),
        *("--enable-supernode-auth", "--database", str(path / "state" / "state.db")),
        *("--isolation", "process", "--superexec-auth-secret-file", str(path / "superexec.secret")),
        *("--disable-runtime-dependency-installation", "--health-server-address", f"{HERE}:{inside.health_port}"),
    )
    executor = (
        *_script("flower-superexec", "--root-certificates", str(path / "authority.crt")),
        *("--runtime-api-address", f"{HERE}:{inside.port}"),
        *("--superexec-auth-secret-file", str(path / "superexec.secret")),
    )
    nginx = ("nginx", "-p", str(path / "run"), "-e", "stderr", "-c", str(path / "run" / "nginx.conf"))
    return [
        _service(folder, "superlink", superlink),
        _service(folder, "executor", executor),
        _service(folder, "proxy", nginx),
    ]


def _service(folder: CoordinatorFolder, name: str, command: tuple[str, ...]) -> Service:
    return Service(
        name=name,
        command=command,
        environment=environment(folder),
        log=folder.path / "logs" / f"{name}.log",
        restart_after_s=2.0,
    )


def environment(folder: CoordinatorFolder) -> dict[str, str]:
    """Of every process: Flower's files in the folder, no telemetry, and the programs of this installation first."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath), "/usr/sbin"])
    return {
        **os.environ,
        **QUIET,
        "FLWR_HOME": str(folder.path / "flower"),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": TASK_POLL_S,
        "PATH": path,
    }


def _script(name: str, *arguments: str) -> tuple[str, ...]:
    return (str(Path(sysconfig.get_path("scripts")) / name), *arguments)
