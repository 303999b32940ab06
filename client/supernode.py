"""Flower's SuperNode, which also says what the coordinator answers: a line for heartbeats, some pulls, each refusal.

Flower itself logs neither, and a SuperNode that has given up looks alive. The watch of the node reads these lines:

    fleet SendNodeHeartbeat 200 clock +0
    fleet ActivateNode 412 clock +0 code 2004
    fleet ActivateNode failed ConnectError: [Errno 111] Connection refused

A program of its own, with the standard library and Flower alone.
"""

from __future__ import annotations

import json
import time
from email.utils import parsedate_to_datetime

import httpx
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supernode import fleet_http_connection
from flwr.supernode.cli.flower_supernode import flower_supernode
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

TOLD_SUCCESSES = ("ActivateNode", "DeactivateNode", "SendNodeHeartbeat", "PushMessages")
PULL = "PullMessages"
PULLS_TOLD_EVERY_S = 20.0  # of one every three seconds


class TellingInterceptor(NodeAuthHttpInterceptor):
    """Signs requests as Flower does, and tells how the coordinator answered."""

    _pull_told = float("-inf")

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Sign and send one request."""
        method = context.rpc_method.rpartition("/")[2]
        try:
            response = super().intercept(context, call_next)
        except httpx.TransportError as error:
            print(f"fleet {method} failed {type(error).__name__}: {error}", flush=True)
            raise
        if response.is_error or method in TOLD_SUCCESSES or (method == PULL and self._pull_is_due()):
            print(f"fleet {method} {response.status_code}{_clock(response)}{_code(response)}", flush=True)
        return response

    def _pull_is_due(self) -> bool:
        due = time.monotonic() - self._pull_told >= PULLS_TOLD_EVERY_S
        if due:
            self._pull_told = time.monotonic()
        return due


def _clock(response: httpx.Response) -> str:
    """By how many seconds this clock is ahead of the coordinator's."""
    try:
        there = parsedate_to_datetime(response.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return ""
    return f" clock {time.time() - there:+.0f}"


def _code(response: httpx.Response) -> str:
    """Flower's own number of an error."""
    if not response.is_error:
        return ""
    try:
        return f" code {int(json.loads(response.content)['code'])}"
    except (ValueError, TypeError, LookupError):
        return ""


def main() -> None:
    """Run ``flower-supernode`` with the arguments of this program."""
    vars(fleet_http_connection)["NodeAuthHttpInterceptor"] = TellingInterceptor
    flower_supernode()


if __name__ == "__main__":
    main()
