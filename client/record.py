"""What a hospital writes down of every request, before its answer leaves: what was asked, and what goes out.

Arrays stand in the record by name and size, facts by name. The only values are the counts that a handshake
announces: they are what the coordinator learns of the patients, and a hospital must be able to look them up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from client.state import seal, stored_seal
from flexmoe_core.audit import AUDIT_FILE, AuditLog
from flexmoe_core.audit_facts import PrivacyCost, bundle_of, bytes_facts
from flexmoe_core.audit_line import Fact, Head
from flexmoe_core.errors import MessageError
from flexmoe_core.messages import Outline, RunName, outline
from flexmoe_core.validation import FrozenModel, SafeName

ANSWERED, FAILED, NAMES = "answered", "failed", "names"
COUNTS = ("announced", "declared_patients", "observed", "patients")

Question = Literal["handshake", "train", "finish"]
Facts = dict[str, Fact]


class _Asked(FrozenModel):
    """What identifies a request; nothing else of what came from outside is written down."""

    run: RunName | None = None
    study: SafeName | None = None
    round: int | None = Field(default=None, ge=0, lt=2**31)
    attempt: int | None = Field(default=None, ge=0, lt=2**31)


class SiteRecord:
    """The record ``audit.jsonl`` in a site's state folder."""

    def __init__(self, state: Path, durable: bool = True) -> None:
        self._state = state
        self._log = AuditLog(state / AUDIT_FILE, durable=durable)

    def stored_answer(self, request: bytes) -> bytes:
        """The seal of the answer that the site has kept, to be compared with the one that it will give."""
        run = _asked(request).run
        return stored_seal(self._state, run) if run else b""

    def answered(
        self, question: Question, request: bytes, payload: bytes, stored: bytes, privacy: PrivacyCost | None = None
    ) -> Head:
        """Write down an answer that is about to leave, and give the head that the line continues.

        ``stored`` is what ``stored_answer`` gave before. The names of a run's arrays have a line of their own,
        when they are first sent. Raises AuditError when it cannot be written: then nothing may leave.
        """
        sent = outline(payload)
        facts = self._request_facts(question, request) | {
            "site": sent.facts["site"],
            "repeated": stored == seal(request, payload),
            "reply": _reply_facts(sent, payload),
            "privacy": (privacy or PrivacyCost()).to_facts(),
        }
        for names in _by_prefix(sent.arrays).values():
            self._list_names(facts["run"], sorted(names))
        return self._log.append(ANSWERED, **facts)

    def failed(self, question: Question, request: bytes | None, error_id: str) -> None:
        """Write down that a request was not answered. Raises AuditError when it cannot be written."""
        self._log.append(FAILED, **self._request_facts(question, request), error_id=error_id)

    def _request_facts(self, question: Question, request: bytes | None) -> Facts:
        return {
            "question": question,
            **_asked(request).model_dump(),
            "bundle": bundle_of(),
            "request": None if request is None else bytes_facts(request),
        }

    def _list_names(self, run: Fact, names: list[str]) -> None:
        digest = _names_digest(names)
        if not self._log.holds(NAMES, run=run, sha256=digest):
            self._log.append(NAMES, run=run, sha256=digest, names=names)


def _asked(request: bytes | None) -> _Asked:
    try:
        facts = outline(request or b"").facts
        terms = facts["terms"]
        named = {"run": terms["run"], "study": terms["study"]["name"]}
        return _Asked.model_validate(named | {key: facts[key] for key in ("round", "attempt") if key in facts})
    except (MessageError, ValidationError, LookupError, TypeError):
        return _Asked()


def _reply_facts(sent: Outline, payload: bytes) -> Facts:
    return {
        **bytes_facts(payload),
        "facts": sorted(sent.facts),
        "counts": {name: sent.facts[name] for name in COUNTS if name in sent.facts},
        "arrays": {
            prefix: {"count": len(sizes), "bytes": sum(sizes.values()), "names": _names_digest(sorted(sizes))}
            for prefix, sizes in sorted(_by_prefix(sent.arrays).items())
        },
    }


def _by_prefix(arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arrays ``prefix/name`` by prefix, then by name."""
    found: dict[str, dict[str, Any]] = {}
    for full_name, size in arrays.items():
        prefix, _, name = full_name.partition("/")
        found.setdefault(prefix, {})[name] = size
    return found


def _names_digest(names: list[str]) -> str:
    """SHA-256 of sorted names, a line each."""
    return hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()
