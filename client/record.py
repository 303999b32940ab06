"""What a hospital writes down of every request, before its answer leaves: what was asked, and what goes out.

Arrays stand in the record by name and size, facts by name. The only values are the counts that a handshake
announces: they are what the coordinator learns of the patients, and a hospital must be able to look them up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from client.state import stored_seal
from flexmoe_core.audit import AUDIT_FILE, AuditLog
from flexmoe_core.audit_facts import PrivacyCost, bundle_of, bytes_facts
from flexmoe_core.audit_line import Fact, Head
from flexmoe_core.errors import MessageError
from flexmoe_core.messages import RunName, outline
from flexmoe_core.validation import FrozenModel, SafeName

ANSWERED, FAILED, NAMES = "answered", "failed", "names"
COUNTS = ("announced", "declared_patients", "observed", "patients")

Question = Literal["handshake", "keys", "shares", "count", "train", "unmask", "finish"]
Facts = dict[str, Fact]


class _Asked(FrozenModel):
    """What identifies a request; nothing else of what came from outside is written down."""

    run: RunName | None = None
    study: SafeName | None = None
    round: int | None = Field(default=None, ge=0, lt=2**31)
    attempt: int | None = Field(default=None, ge=0, lt=2**31)


@dataclass(frozen=True)
class Received:
    """A request, as the record names it; ``stored`` is the seal of the answer that the site kept before."""

    facts: Facts
    sha256: str
    stored: bytes


class SiteRecord:
    """The record ``audit.jsonl`` in a site's state folder."""

    def __init__(self, state: Path, durable: bool = True) -> None:
        self._state = state
        self._log = AuditLog(state / AUDIT_FILE, durable=durable)

    def received(self, question: Question, request: bytes | None) -> Received:
        """What to remember of a request until it has been answered; None where a message held none."""
        asked = _asked(request)
        sha256 = hashlib.sha256(request or b"").hexdigest()
        facts: Facts = {
            "question": question,
            **asked.model_dump(),
            "bundle": bundle_of(),
            "request": None if request is None else {"bytes": len(request), "sha256": sha256},
        }
        return Received(facts, sha256, stored_seal(self._state, asked.run) if asked.run else b"")

    def answered(
        self, received: Received, payload: bytes, privacy: PrivacyCost | None = None, ledger: Head | None = None
    ) -> Head:
        """Write down an answer that is about to leave, and give the head that the line continues.

        The names of a run's arrays have a line of their own, when they are first sent. Raises AuditError when it
        cannot be written: then nothing may leave.
        """
        sent = outline(payload)
        reply = bytes_facts(payload)
        groups = _by_prefix(sent.arrays)
        lists = {prefix: _names_digest(sizes) for prefix, sizes in groups.items()}
        for digest, prefix in {digest: prefix for prefix, digest in lists.items()}.items():
            self._list_names(received.facts["run"], digest, sorted(groups[prefix]))
        arrays: Facts = {
            prefix: {"count": len(sizes), "bytes": sum(sizes.values()), "names": lists[prefix]}
            for prefix, sizes in groups.items()
        }
        counts: Facts = {name: sent.facts[name] for name in COUNTS if name in sent.facts}
        return self._log.append(
            ANSWERED,
            **received.facts,
            site=sent.facts["site"],
            repeated=received.stored.hex() == f"{received.sha256}{reply['sha256']}",
            reply={**reply, "facts": sorted(sent.facts), "counts": counts, "arrays": arrays},
            privacy=(privacy or PrivacyCost()).to_facts(),
            **({"ledger": asdict(ledger)} if ledger else {}),
        )

    def failed(self, received: Received, error_id: str) -> None:
        """Write down that a request was not answered. Raises AuditError when it cannot be written."""
        self._log.append(FAILED, **received.facts, error_id=error_id)

    def _list_names(self, run: Fact, digest: str, names: list[str]) -> None:
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


def _by_prefix(arrays: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Sizes of arrays ``prefix/name`` by prefix, then by name."""
    found: dict[str, dict[str, int]] = {}
    for full_name, size in arrays.items():
        prefix, _, name = full_name.partition("/")
        found.setdefault(prefix, {})[name] = size
    return found


def _names_digest(names: Iterable[str]) -> str:
    """SHA-256 of the sorted names, a line each."""
    return hashlib.sha256("".join(f"{name}\n" for name in sorted(names)).encode()).hexdigest()
