"""The command ``flexmoe-server health``: whether hospitals can work with the coordinator now."""

from __future__ import annotations

import socket
import ssl

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from flexmoe_core.command_line import FAILED, tell
from server.deployment.arguments import Folder
from server.deployment.folder import CoordinatorFolder
from server.deployment.services import HERE
from server.deployment.settings import OutsideSettings

PATIENCE_S = 3.0
EVERYWHERE = {"0.0.0.0": HERE, "[::]": "::1", "::": "::1"}
"""Where to knock when the proxy listens on every address."""


def health(folder: Folder) -> None:
    """Say whether SuperLink and proxy answer, for a container's health check. Exit code 0: they do; 1: not."""
    reason = ill_health(CoordinatorFolder.open(folder))
    if reason:
        tell([f"flexmoe-server: {reason}"])
        raise typer.Exit(FAILED)


def ill_health(folder: CoordinatorFolder) -> str:
    """Why the coordinator should count as unhealthy; empty when it should not."""
    settings = folder.settings
    return _superlink_trouble(settings.inside.health_port) or _proxy_trouble(
        settings.outside, folder.authority_certificate.decode()
    )


def _superlink_trouble(port: int) -> str:
    try:
        with grpc.insecure_channel(f"{HERE}:{port}") as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
    except grpc.RpcError:
        return f"the SuperLink's health service on {HERE}:{port} does not answer; see logs/superlink.log"
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return "" if serving else "the SuperLink's health service says that it does not serve"


def _proxy_trouble(outside: OutsideSettings, authority: str) -> str:
    """Whether the proxy shows a certificate of this federation, for the name that hospitals are told."""
    context = ssl.create_default_context(cadata=authority)
    address = (EVERYWHERE.get(outside.listen, outside.listen.strip("[]")), outside.port)
    try:
        with (
            socket.create_connection(address, timeout=PATIENCE_S) as connection,
            context.wrap_socket(connection, server_hostname=outside.names[0]),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return f"the proxy's certificate is refused: {error.verify_message}; see 'flexmoe-server renew'"
    except OSError as error:
        where = f"{address[0]}:{address[1]}"
        return f"the proxy at {where} does not answer TLS ({error}); see logs/proxy.log"
