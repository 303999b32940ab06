"""The processes of a hospital's node: Flower's SuperNode, its SuperExec, and a tunnel where one is asked for.

    coordinator <--TLS-- [stunnel, with the site's certificate] <--TLS-- SuperNode <--TLS, secret-- SuperExec -> guard

All ports are on 127.0.0.1, and nothing secret stands on a command line.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import shlex
import shutil
import socket
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from client.node_certificates import LocalTls, write_local_tls
from client.node_folder import ROSTER_FILE, NodeFolder
from flexmoe_core.checkpoint import write_atomic
from flexmoe_core.enrollment import Welcome
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.supervision import Service

HERE = Path(__file__).parent
LOOPBACK = "127.0.0.1"
SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "PYTHONUNBUFFERED": "1",
}
LONGEST_PAUSE_S = 15.0  # a coordinator holds the session of a node that was killed for a minute
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
SUPERNODE, SUPEREXEC, STANDBY, TUNNEL = "supernode", "superexec", "standby", "tunnel"

Judge = Callable[[str], str | None]


@dataclass(frozen=True)
class Ports:
    """Ports on 127.0.0.1: of the SuperNode for its SuperExec, of its health service, and of the tunnel."""

    runtime: int
    health: int
    tunnel: int


def free_ports(runtime: int | None, health: int | None) -> Ports:
    """The given ports, and free ones in place of those that are not given."""
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        for probe in (one, two, three):
            probe.bind((LOOPBACK, 0))
        free = [int(probe.getsockname()[1]) for probe in (one, two, three)]
    return Ports(runtime or free[0], health or free[1], free[2])


def node_services(
    node: NodeFolder, data: Path, device: str, welcome: Welcome, ports: Ports, judges: dict[str, Judge]
) -> list[Service]:
    """Write the files that the processes need into NODE/run, and describe the processes in the order of their start.

    ``judges`` are by name. Raises InputError when a program or a path cannot be used.
    """
    environment = {**os.environ, **SETTINGS, "FLWR_HOME": str(node.flower)}
    local = write_local_tls(node.run)
    secret = node.run / "superexec.secret"
    write_atomic(secret, secrets.token_bytes(32))
    launchers = _write_launcher(node)
    services = []
    address, authority = welcome.address, node.run / "ca.pem"
    write_atomic(authority, welcome.certificate_authority.encode())
    if welcome.client_certificate is not None:
        command = (_stunnel(), str(_write_tunnel(node, welcome, ports, local)))
        services.append(_service(node, TUNNEL, command, environment, judges, 1.0))
        address, authority = f"{LOOPBACK}:{ports.tunnel}", local.authority
    own = {"identity": node.path / "identity_key", "roster": node.path / ROSTER_FILE}
    config = {"site": data, "state": node.state, "device": device, **own}
    supernode = (
        *(sys.executable, "-P", str(HERE / "supernode.py")),
        *("--superlink", address, "--root-certificates", str(authority)),
        *("--auth-supernode-private-key", str(node.path / "node_key")),
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
        *("--host", LOOPBACK, "--port", str(ports.runtime)),
        *("--ssl-certfile", str(local.certificate), "--ssl-keyfile", str(local.key)),
        *("--ssl-ca-certfile", str(local.authority)),
        *("--health-server-address", f"{LOOPBACK}:{ports.health}"),
        *("--node-config", " ".join(f"{name}={_quoted(value)}" for name, value in config.items())),
    )
    services.append(_service(node, SUPERNODE, supernode, environment, judges, 5.0))
    standby = (sys.executable, "-P", str(HERE / "standby.py"), str(node.path))
    # a site computes with one thread, and a process of one thread is copied whole
    alone = {**environment, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    services.append(_service(node, STANDBY, standby, alone, judges, 1.0))
    superexec = (
        str(Path(sysconfig.get_path("scripts")) / "flower-superexec"),
        *("--root-certificates", str(local.authority), "--superexec-auth-secret-file", str(secret)),
        *("--runtime-api-address", f"{LOOPBACK}:{ports.runtime}"),
    )
    only_launchers = {**environment, "PATH": str(launchers)}
    services.append(_service(node, SUPEREXEC, superexec, only_launchers, judges, 1.0))
    return services


def _service(
    node: NodeFolder,
    name: str,
    command: tuple[str, ...],
    environment: dict[str, str],
    judges: dict[str, Judge],
    pause_s: float,
) -> Service:
    return Service(name, command, environment, node.logs / f"{name}.log", pause_s, LONGEST_PAUSE_S, judges.get(name))


def _quoted(value: object) -> str:
    """A value for Flower's --node-config, which knows no escapes."""
    text = str(value)
    if "'" in text or not text.isprintable():
        remedy = "Rename it or a folder above it."
        raise InputError([Problem(text, "", "has a quote or a control character in its path", remedy)])
    return f"'{text}'"


def _write_launcher(node: NodeFolder) -> Path:
    """The only folder on the SuperExec's PATH: its ``flwr-clientapp`` is our guard, and there is nothing else."""
    folder = node.run / "bin"
    for left in folder.iterdir():
        left.unlink()
    path = os.environ.get("PATH", SYSTEM_PATH)
    program = [sys.executable, "-I", "-S", str(HERE / "launch.py"), str(node.path), str(HERE / "guard.py")]
    command = shlex.join(program)
    script = f'#!/bin/sh\nPATH={shlex.quote(path)}\nexport PATH\nexec {command} "$@"\n'
    write_atomic(folder / "flwr-clientapp", script.encode(), mode=0o700)
    return folder


def _stunnel() -> str:
    program = shutil.which("stunnel") or shutil.which("stunnel4")
    if program is None:
        what = "is not installed, and this study's coordinator asks for the site's certificate"
        raise InputError([Problem("stunnel", "", what, "Install it, for instance: apt-get install stunnel4")])
    return program


def _write_tunnel(node: NodeFolder, welcome: Welcome, ports: Ports, local: LocalTls) -> Path:
    """The settings of stunnel, which presents the site's certificate; between its halves is a socket in NODE/run."""
    assert welcome.client_certificate is not None
    between = node.run / "tunnel.sock"
    between.unlink(missing_ok=True)
    if len(str(between)) > 100:
        what = "is too long a path for a Unix socket"
        raise InputError([Problem(str(between), "", what, "Move the node folder to a shorter path.")])
    certificate, authority = node.run / "client.pem", node.run / "ca.pem"
    write_atomic(certificate, welcome.client_certificate.encode())
    lines = [
        "foreground = yes",
        "pid =",
        "syslog = no",
        "[from-supernode]",
        "client = no",
        f"accept = {LOOPBACK}:{ports.tunnel}",
        f"cert = {local.certificate}",
        f"key = {local.key}",
        f"connect = {between}",
        "[to-coordinator]",
        "client = yes",
        f"accept = {between}",
        f"connect = {welcome.address}",
        f"cert = {certificate}",
        f"key = {node.path / 'tls_key'}",
        f"CAfile = {authority}",
        "verifyChain = yes",
        f"{'checkIP' if _is_address(welcome.host) else 'checkHost'} = {welcome.host}",
        "sslVersionMin = TLSv1.2",
    ]
    file = node.run / "stunnel.conf"
    write_atomic(file, "".join(f"{line}\n" for line in lines).encode())
    return file


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
