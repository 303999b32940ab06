"""What the coordinator writes down of a run: what it asked, what came back, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Literal

from flexmoe_core.attachments import Attachments
from flexmoe_core.audit import AUDIT_FILE, AuditLog
from flexmoe_core.audit_facts import PrivacyCost, bundle_of, bytes_facts
from flexmoe_core.audit_line import Fact
from flexmoe_core.errors import AuditError
from server.conversation import Answers
from server.run_store import RunStore

ASKED, ANSWERED, CHECKPOINT = "asked", "answered", "checkpoint"
STARTED, RESUMED, FINISHED, FAILED = "started", "resumed", "finished", "failed"

Question = Literal["handshake", "keys", "shares", "count", "train", "unmask", "finish"]
HANDSHAKE: Question = "handshake"


class RunRecord:
    """The record ``audit.jsonl`` in a run's folder. Every method raises AuditError when it cannot be written."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._log = AuditLog(store.folder / AUDIT_FILE, durable=store.durable)

    @contextmanager
    def of_run(self, resumed: bool) -> Iterator[None]:
        """Write down that a run starts or goes on, and how it ends. Of an error only the kind is written."""
        self._log.append(
            RESUMED if resumed else STARTED,
            run=self._store.run,
            study=self._store.study.name,
            seed=self._store.settings.seed,
            settings=self._store.digest("config.toml"),
            study_file=self._store.digest("study.toml"),
            bundle=bundle_of(),
        )
        try:
            yield
        except BaseException as error:
            with suppress(AuditError):  # the error itself is what the user must see
                self._log.append(FAILED, error=type(error).__name__)
            raise
        self._log.append(FINISHED, metrics=self._store.digest("metrics.json"))

    def asked(
        self,
        question: Question,
        names: Iterable[str],
        payload: bytes,
        round_number: int | None = None,
        attempt: int | None = None,
    ) -> None:
        """Write down a question before it is asked."""
        place: dict[str, Fact] = {"question": question, "round": round_number, "attempt": attempt}
        self._log.append(ASKED, **place, sites=sorted(names), request=bytes_facts(payload))

    def answered(
        self,
        question: Question,
        answers: Answers,
        refused: Mapping[str, str | list[str]],
        round_number: int | None = None,
        attempt: int | None = None,
        nodes: Mapping[str, int] | None = None,
    ) -> None:
        """Write down what came back. ``refused`` says of answers, and of others, why the run goes on without them.

        ``nodes`` are the nodes of the sites that a handshake has admitted.
        """
        place: dict[str, Fact] = {"question": question, "round": round_number, "attempt": attempt}
        admitted: dict[str, Fact] = {} if nodes is None else {"nodes": dict(nodes)}
        self._log.append(
            ANSWERED,
            **place,
            **admitted,
            answers={name: _answer_facts(answers, name) for name in answers.payloads},
            failed=dict(answers.failed),
            missing=list(answers.missing),
            dropped={name: refused[name] for name in answers.payloads if name in refused},
            privacy=PrivacyCost().to_facts(),
        )

    def checkpoint(self, round_number: int, digest: str) -> None:
        """Write down that a round's checkpoint was written, and what seals it."""
        self._log.append(CHECKPOINT, round=round_number, sha256=digest)


def _answer_facts(answers: Answers, name: str) -> Fact:
    beside = answers.beside.get(name, Attachments())
    facts: dict[str, Fact] = {"head": asdict(beside.audit_head) if beside.audit_head else None}
    if beside.ledger_head:
        facts["ledger"] = asdict(beside.ledger_head)
    return {**bytes_facts(answers.payloads[name]), **facts}
