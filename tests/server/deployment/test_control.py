from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest
from flwr.proto.control_pb2 import ListNodesResponse, ListRunsResponse, StartRunResponse
from flwr.proto.node_pb2 import NodeInfo

from flexmoe_core.errors import RunFailed
from server.deployment.certificates import make_authority
from server.deployment.control import Control, FlowerRun, NoAnswer, control
from tests.server.deployment.coordinators import NOW

AUTHORITY = make_authority("trial federation", NOW).certificate


@pytest.fixture
def asked() -> Iterator[Control]:
    with socket.socket() as held:  # bound and not listening: nobody answers there, nor starts to
        held.bind(("127.0.0.1", 0))
        with control(held.getsockname()[1], AUTHORITY) as one:
            yield one


def test_where_nobody_listens_there_is_no_answer(asked: Control) -> None:
    with pytest.raises(NoAnswer, match=r"does not answer \(ConnectError\)\. Is 'flexmoe-server start' running\?"):
        asked.nodes()


def test_a_refusal_is_told_with_what_was_said(asked: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    request = httpx.Request("POST", "https://127.0.0.1/")

    def refuse(_request: object) -> None:
        response = httpx.Response(409, text="Public key already in use.", request=request)
        raise httpx.HTTPStatusError("no", request=request, response=response)

    monkeypatch.setattr(asked._client, "ListNodes", refuse)
    with pytest.raises(RunFailed, match=r"refuses with status 409: Public key already in use\.") as refused:
        asked.nodes()
    assert not isinstance(refused.value, NoAnswer)


def test_nodes_that_were_unregistered_are_not_shown(asked: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"last_activated_at": "up", "last_deactivated_at": "down"}
    answer = ListNodesResponse(
        nodes_info=[
            NodeInfo(node_id=number, name=status, status=status, public_key=b"key", **times)
            for number, status in enumerate(("registered", "online", "offline", "unregistered"))
        ]
    )
    monkeypatch.setattr(asked._client, "ListNodes", lambda _request: answer)
    assert [(node.status, node.since) for node in asked.nodes()] == [
        ("registered", "down"),
        ("online", "up"),
        ("offline", "down"),
    ]


def test_a_run_that_the_superlink_does_not_know_is_none(asked: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ListRunsResponse()
    answer.run_dict[7].status.status = "finished"
    answer.run_dict[7].status.sub_status = "failed"
    answer.run_dict[7].status.details = "why"
    answer.run_dict[8].status.status = "running"
    monkeypatch.setattr(asked._client, "ListRuns", lambda _request: answer)
    assert asked.run(7) == FlowerRun(7, "finished:failed", "why")
    going = asked.run(8)
    assert going is not None and going.status == "running" and not going.finished
    assert asked.run(9) is None


def test_a_run_that_was_not_taken_is_told(asked: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked._client, "StartRun", lambda _request: StartRunResponse())
    with pytest.raises(RunFailed, match=r"took no run\. See logs/superlink\.log"):
        asked.start_run(b"bundle", {})
