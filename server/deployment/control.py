"""Flower's Control API, from the coordinator's own machine.

It asks nobody who they are: whoever reaches it runs code at every hospital. So it listens on 127.0.0.1, and the proxy
does not know its paths.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import httpx
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from flwr.app import UserConfigValue
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from flexmoe_core.errors import RunFailed

NodeStatus = Literal["registered", "online", "offline", "unregistered"]
T = TypeVar("T")


@dataclass(frozen=True)
class Node:
    """A hospital's node as the SuperLink sees it; ``since`` is when its status last changed, in ISO 8601."""

    node_id: int
    name: str
    status: NodeStatus
    since: str
    public_key: bytes


@dataclass(frozen=True)
class FlowerRun:
    """A run as the SuperLink sees it: ``status`` is ``running``, ``finished:completed`` and so on."""

    run_id: int
    status: str
    details: str

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen."""
        return self.status.startswith("finished")


class NoAnswer(RunFailed):
    """The SuperLink cannot be reached: it may be starting."""


class Unknown(RunFailed):
    """The SuperLink does not know what it was asked about."""


class Control:
    """Requests to the SuperLink on this machine; raise NoAnswer, or RunFailed where it refuses."""

    def __init__(self, port: int, authority: bytes) -> None:
        self._address = f"127.0.0.1:{port}"
        self._client = ControlHttpClient.from_server_address(
            self._address, False, authority, [RuntimeVersionHttpInterceptor(component_name="flwr CLI")]
        )

    def nodes(self) -> list[Node]:
        """All nodes that are registered."""
        answer = self._ask(lambda: self._client.ListNodes(ListNodesRequest()))
        return [
            Node(
                one.node_id,
                one.name,
                one.status,
                one.last_activated_at if one.status == "online" else one.last_deactivated_at,
                one.public_key,
            )
            for one in answer.nodes_info
            if one.status != "unregistered"
        ]

    def register(self, site: str, node_key: str) -> None:
        """Let a node with this key (an OpenSSH line) in under the site's name."""
        request = RegisterNodeRequest(public_key=flower_key(node_key), name=site)
        self._ask(lambda: self._client.RegisterNode(request))

    def unregister(self, node: Node) -> None:
        """Let a node in no more."""
        self._ask(lambda: self._client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id)))

    def start_run(self, bundle: bytes, config: Mapping[str, UserConfigValue]) -> int:
        """Submit a bundle with a run configuration; Flower's number of the run."""
        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        request = StartRunRequest(fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(config)))
        answer = self._ask(lambda: self._client.StartRun(request))
        if not answer.HasField("run_id"):
            raise RunFailed(f"the SuperLink at {self._address} took no run. See logs/superlink.log.")
        return int(answer.run_id)

    def run(self, run_id: int) -> FlowerRun | None:
        """What has become of a run; None where the SuperLink does not know it."""
        try:
            answer = self._ask(lambda: self._client.ListRuns(ListRunsRequest(run_id=run_id)))
        except Unknown:  # so with the database of another machine
            return None
        found = answer.run_dict.get(run_id)
        if found is None:
            return None
        status = ":".join(part for part in (found.status.status, found.status.sub_status) if part)
        return FlowerRun(run_id, status, found.status.details)

    def stop_run(self, run_id: int) -> bool:
        """End a run; whether there was one to end."""
        return bool(self._ask(lambda: self._client.StopRun(StopRunRequest(run_id=run_id))).success)

    def _ask(self, request: Callable[[], T]) -> T:
        superlink = f"the SuperLink at {self._address}"
        try:
            return request()
        except httpx.HTTPStatusError as error:
            said = f"status {error.response.status_code}: {error.response.text[:200]}"
            kind = Unknown if error.response.status_code == httpx.codes.NOT_FOUND else RunFailed
            raise kind(f"{superlink} refuses with {said}") from None
        except httpx.TransportError as error:
            said = f"({type(error).__name__}). Is 'flexmoe-server start' running?"
            raise NoAnswer(f"{superlink} does not answer {said}") from None

    def close(self) -> None:
        """Close its connections."""
        self._client.close()


@contextmanager
def control(port: int, authority: bytes) -> Iterator[Control]:
    """Control for a while."""
    one = Control(port, authority)
    try:
        yield one
    finally:
        one.close()


def flower_key(node_key: str) -> bytes:
    """A node's public key as Flower keeps it."""
    key = load_ssh_public_key(node_key.encode())
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
