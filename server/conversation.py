"""Asking sites over Flower's Message API, and telling who answered, who failed and who stayed silent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

Question = Literal["query.handshake", "train", "evaluate"]


@dataclass(frozen=True)
class Answers:
    """What came back, by whom was asked: payloads, failures in words, and the silent ones."""

    payloads: dict[str, bytes]
    failed: dict[str, str]
    missing: tuple[str, ...]
    bytes_up: int
    bytes_down: int


def ask(grid: Grid, nodes: Mapping[str, int], question: Question, payload: bytes, deadline_s: float) -> Answers:
    """Send the same payload to every node (by name) and wait until all have answered or the deadline."""
    messages = {
        name: Message(_pack(payload), node, question, ttl=deadline_s, group_id=question)
        for name, node in sorted(nodes.items())
    }
    names_by_node = {node: name for name, node in nodes.items()}
    replies = list(grid.send_and_receive(messages.values(), timeout=deadline_s))
    # An error reply for a lost node names the SuperLink as its source: the message it replies to is what counts.
    by_message = {message.metadata.message_id: name for name, message in messages.items()}
    payloads: dict[str, bytes] = {}
    failed: dict[str, str] = {}
    for reply in replies:
        name = by_message.get(reply.metadata.reply_to_message_id) or names_by_node.get(reply.metadata.src_node_id)
        if name is None:
            continue
        if reply.has_error():
            failed[name] = f"error {reply.error.code}: {_first_line(reply.error.reason)}"
            continue
        try:
            payloads[name] = _unpack(reply.content)
        except (KeyError, TypeError, ValueError):
            failed[name] = "the reply holds no payload"
    silent = tuple(name for name in messages if name not in payloads and name not in failed)
    return Answers(
        payloads,
        failed,
        silent,
        bytes_up=sum(map(len, payloads.values())),
        bytes_down=len(payload) * len(messages),
    )


def _pack(payload: bytes) -> RecordDict:
    array = Array.from_numpy_ndarray(np.frombuffer(payload, dtype=np.uint8))
    return RecordDict({"payload": ArrayRecord({"bytes": array})})


def _unpack(content: RecordDict) -> bytes:
    values = content.array_records["payload"]["bytes"].numpy()
    if values.dtype != np.uint8:
        raise TypeError("the payload is not bytes")
    return values.tobytes()


def _first_line(reason: str | None) -> str:
    return reason.splitlines()[0][:200] if reason else "no reason given"
