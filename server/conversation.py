"""Asking sites over Flower's Message API, and telling who answered, who failed and who stayed silent."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from flexmoe_core.attachments import RECORD, Attachments
from flexmoe_core.errors import MessageError

LONGEST_REASON = 200
POLL_S = 1.0
Question = Literal[
    "query.handshake", "query.keys", "query.shares", "query.count", "query.unmask", "train", "evaluate"
]


@dataclass(frozen=True)
class Answers:
    """What came back, by the name that was asked: payloads, failures in words, and the silent ones.

    ``beside`` is what stood beside each payload.
    """

    payloads: dict[str, bytes]
    failed: dict[str, str]
    missing: tuple[str, ...]
    bytes_up: int
    bytes_down: int
    beside: dict[str, Attachments] = field(default_factory=dict)

    def counting(self, later: Answers) -> Answers:
        """These, with the bytes of a later phase counted too."""
        up, down = self.bytes_up + later.bytes_up, self.bytes_down + later.bytes_down
        return replace(self, bytes_up=up, bytes_down=down)


def ask(
    grid: Grid,
    nodes: Mapping[str, int],
    question: Question,
    payload: bytes,
    deadline_s: float,
    beside: Mapping[str, Attachments] | None = None,
) -> Answers:
    """Send the same payload to every node (by name) and wait until all have answered or the deadline.

    ``beside`` is what some of them get beside it.
    """
    extra = beside or {}
    content = _pack(payload)
    messages = {
        name: Message(_with(content, extra.get(name)), node, question, ttl=deadline_s, group_id=question)
        for name, node in sorted(nodes.items())
    }
    replies = list(grid.send_and_receive(messages.values(), timeout=deadline_s))
    # An error reply for a lost node names the SuperLink as its source: the message it replies to is what counts.
    asked = {message.metadata.message_id: name for name, message in messages.items()}
    payloads: dict[str, bytes] = {}
    came_beside: dict[str, Attachments] = {}
    failed: dict[str, str] = {}
    for reply in replies:
        name = asked.pop(reply.metadata.reply_to_message_id, None)
        if name is None:
            continue
        if reply.has_error():
            failed[name] = f"error {reply.error.code}: {in_short(reply.error.reason or 'no reason given')}"
            continue
        try:
            payloads[name], came_beside[name] = _unpack(reply.content)
        except MessageError as error:
            failed[name] = str(error)
        except Exception:  # numpy's reader fails in many ways on bytes that are no array
            failed[name] = "the reply holds no payload"
    return Answers(
        payloads,
        failed,
        missing=tuple(sorted(asked.values())),
        bytes_up=sum(map(len, payloads.values())),
        bytes_down=len(payload) * len(messages),
        beside=came_beside,
    )


def wait_for_nodes(
    grid: Grid,
    nodes: Collection[int] | None,
    needed: int,
    patience_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[int, float]:
    """Wait until so many of the nodes (None: any) are online, or the patience is over.

    Gives how many are, and the seconds that it took.

    A message to a node that is offline fails at once: without waiting, an outage of a minute would cost every round.
    """
    started = time.monotonic()
    while (online := len([one for one in grid.get_node_ids() if nodes is None or one in nodes])) < needed:
        if time.monotonic() - started > patience_s:
            break
        sleep(POLL_S)
    return online, time.monotonic() - started


def in_short(text: str) -> str:
    """Words that came from outside, for a log or a terminal: one short line without control characters."""
    line = "".join(sign if sign.isprintable() else " " for sign in text[:LONGEST_REASON])
    return line if len(text) <= LONGEST_REASON else f"{line}..."


def _pack(payload: bytes) -> RecordDict:
    array = Array.from_numpy_ndarray(np.frombuffer(payload, dtype=np.uint8))
    return RecordDict({"payload": ArrayRecord({"bytes": array})})


def _with(content: RecordDict, beside: Attachments | None) -> RecordDict:
    if beside is None:
        return content
    return RecordDict({**content, RECORD: ConfigRecord(dict(beside.to_values()))})


def _unpack(content: RecordDict) -> tuple[bytes, Attachments]:
    values = content.array_records["payload"]["bytes"].numpy()
    if values.dtype != np.uint8:
        raise TypeError("the payload is not bytes")
    beside = Attachments.from_values(content.config_records[RECORD]) if RECORD in content else Attachments()
    return values.tobytes(), beside
