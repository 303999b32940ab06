"""A small study, what scripted sites answer to its coordinator, and a grid that carries it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import safetensors.numpy
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from flexmoe_core.combinations import CombinationTable
from flexmoe_core.evaluation import CellResult, cells_to_arrays
from flexmoe_core.messages import FinishReply, Terms, encode
from flexmoe_core.modalities.tabular import NumericColumn, TabularModality
from flexmoe_core.naming import with_prefix
from flexmoe_core.scores import Scores
from flexmoe_core.settings import MethodSettings
from flexmoe_core.study import Label, Study
from server.record import RunRecord

MODALITIES = ("history", "labs")
STUDY = Study(
    name="scripted",
    label=Label(name="outcome", classes=("no", "yes")),
    modalities=tuple(
        TabularModality(name=name, encoder="shared", columns=(NumericColumn(name="value", range=(0.0, 1.0)),))
        for name in MODALITIES
    ),
)
METHOD = MethodSettings.model_validate(
    {
        "model": {"width": 8, "heads": 2, "experts": 3, "expert_width": 8},
        "curriculum": {"generalize_rounds": 0},
    }
)
RUN = "0123456789abcdef" * 2

Answer = Callable[[Message], Message | None]


def make_terms(study: Study = STUDY, min_cell: int = 5) -> Terms:
    return Terms(run=RUN, seed=0, study=study, method=METHOD, min_cell=min_cell, rounds=4)


def make_table() -> CombinationTable:
    return CombinationTable.build(2, METHOD.model.experts, {"north": {3: 20, 1: 9}}, min_full=8)


def sealed(kind: str, facts: Mapping[str, object], arrays: Mapping[str, np.ndarray] | None = None) -> bytes:
    """The bytes of a message of any content."""
    body = safetensors.numpy.save(dict(arrays or {}), metadata={"facts": json.dumps({kind: facts})})
    return hashlib.sha256(body).digest() + body


def handshake_reply(site: str, announced: Mapping[int, int] | None = None, **changes: object) -> bytes:
    """A reply of any content: what a real site would not send is not refused here."""
    facts = {
        "site": site,
        "declared_patients": 30,
        "declared_full_modality": True,
        "modalities": MODALITIES,
        "patients": {"train": 30},
        "announced": {3: 20, 1: 9} if announced is None else announced,
        "observed": {"history": 29, "labs": 20},
    }
    return sealed("HandshakeReply", facts | changes)


def some_cells(patients: int = 30, seed: int = 0) -> dict[str, np.ndarray]:
    """Scores and gates of patients of the combination 3, as they travel."""
    rng = np.random.default_rng(seed)
    positive_B = rng.uniform(0.01, 0.99, patients)
    scores = Scores.of(np.stack([1 - positive_B, positive_B], axis=1), rng.integers(0, 2, patients))
    gates_E = np.full(METHOD.model.experts, patients / METHOD.model.experts)
    return cells_to_arrays({3: CellResult(scores, gates_E)})


def finish_reply(site: str, bundle: str = "b" * 64) -> bytes:
    return encode(FinishReply(site=site, bundle=bundle), with_prefix("test", some_cells()))


def packed(payload: bytes) -> RecordDict:
    array = Array.from_numpy_ndarray(np.frombuffer(payload, dtype=np.uint8))
    return RecordDict({"payload": ArrayRecord({"bytes": array})})


def unpacked(message: Message) -> bytes:
    return message.content.array_records["payload"]["bytes"].numpy().tobytes()


def says(payload: bytes) -> Answer:
    return lambda message: Message(packed(payload), reply_to=message)


def silent(message: Message) -> None:
    """No answer before the deadline."""


class Unrecorded(RunRecord):
    """For tests of what is asked alone."""

    def __init__(self) -> None:
        """No run folder is needed."""

    def asked(self, *_: object, **__: object) -> None:
        """Write nothing."""

    def answered(self, *_: object, **__: object) -> None:
        """Write nothing."""


class ScriptedGrid(Grid):
    """Sites by node id. ``online`` are the sites that each next look finds, the last of them for ever."""

    def __init__(self, sites: Mapping[int, Answer], online: Sequence[Sequence[int]] = ()) -> None:
        self.sites = dict(sites)
        self.asked: list[Message] = []
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self._online = [list(nodes) for nodes in online] or [list(sites)]

    def get_node_ids(self) -> Iterable[int]:
        return self._online.pop(0) if len(self._online) > 1 else self._online[0]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"message {len(self.asked)}"
            self.asked.append(message)
            replies.append(self.sites[message.metadata.dst_node_id](message))
        return [reply for reply in replies if reply is not None]

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        raise NotImplementedError

    def get_nodes(self) -> Iterable[NodeInfo]:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError
