"""What a running node writes of itself, and what its engineer is shown of it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import ValidationError

from client.node_folder import NodeFolder
from client.node_services import LOOPBACK, SUPERNODE
from client.node_watch import NodeFacts
from client.state import LOCAL_PREFIX
from flexmoe_core.checkpoint import write_atomic
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.supervision import ServiceState
from flexmoe_core.validation import FrozenModel

CONTACT_S = 60.0  # the coordinator takes a node for offline 60 s after its last heartbeat
HEALTH_PATIENCE_S = 2.0


class NodeStatus(FrozenModel):
    """The record in NODE/run/status.json; times are seconds since the epoch."""

    site: str
    study: str
    address: str
    health_port: int
    facts: NodeFacts
    services: tuple[ServiceState, ...] = ()

    def is_connected(self, now: float) -> bool:
        """Whether the coordinator has heard of the node lately, by the watch's own finding."""
        facts = self.facts
        running = any(one.name == SUPERNODE and one.pid is not None for one in self.services)
        recent = facts.last_contact is not None and now - facts.last_contact < CONTACT_S
        return running and facts.session and recent


def write_status(node: NodeFolder, status: NodeStatus) -> None:
    """Replace the record."""
    write_atomic(node.status_file, json.dumps(status.model_dump(mode="json"), indent=1).encode())


def read_status(node: NodeFolder) -> NodeStatus | None:
    """The record, or None where there is none of this version."""
    try:
        return NodeStatus.model_validate_json(node.status_file.read_bytes())
    except (OSError, ValidationError):
        return None


@contextmanager
def running_once(node: NodeFolder) -> Iterator[None]:
    """Hold the node's pid file. Raises InputError when a node already runs from this folder."""
    descriptor = os.open(node.pid_file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = f"Stop it first (its process id is in {node.pid_file}), or see 'flexmoe-client status'."
            raise InputError([Problem(str(node.path), "", "a node already runs from this folder", remedy)]) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def running_pid(node: NodeFolder) -> int | None:
    """The process id of the node that runs from this folder."""
    try:
        with node.pid_file.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read())
    except (OSError, ValueError):
        return None
    return None


def latest_run(state: Path) -> tuple[str, int | None] | None:
    """The run that the site's state folder last heard of, and the last round that it trained there."""
    runs = [folder for folder in state.iterdir() if (folder / "answer.bin").exists()] if state.is_dir() else []
    if not runs:
        return None
    newest = max(runs, key=lambda folder: (folder / "answer.bin").stat().st_mtime)
    rounds = [int(file.stem.removeprefix(LOCAL_PREFIX)) for file in newest.glob(f"{LOCAL_PREFIX}*.json")]
    return newest.name, max(rounds, default=None)


def ill_health(node: NodeFolder) -> str:
    """Why a container with this node should count as unhealthy; empty when it should not."""
    status = read_status(node)
    if running_pid(node) is None or status is None:
        return "the node does not run"
    if not status.is_connected(time.time()):
        return status.facts.trouble or "the node has no contact to the coordinator"
    try:
        with grpc.insecure_channel(f"{LOOPBACK}:{status.health_port}") as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=HEALTH_PATIENCE_S
            )
    except grpc.RpcError:
        return "the SuperNode's health service does not answer"
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return "" if serving else "the SuperNode's health service says that it does not serve"


def as_json(node: NodeFolder, allowed: tuple[str, ...]) -> dict[str, object]:
    """All that is known, for other programs."""
    status, pid, latest = read_status(node), running_pid(node), latest_run(node.state)
    return {
        "running": pid is not None,
        "pid": pid,
        "connected": is_connected(node),
        "status": None if status is None else status.model_dump(mode="json"),
        "run": None if latest is None else {"name": latest[0], "round": latest[1]},
        "allowed_bundles": list(allowed),
    }


def is_connected(node: NodeFolder) -> bool:
    """Whether the node runs and has contact to the coordinator."""
    status = read_status(node)
    return running_pid(node) is not None and status is not None and status.is_connected(time.time())
