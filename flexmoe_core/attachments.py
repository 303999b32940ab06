"""What travels beside a payload in a message, and is never part of its bytes: equal answers stay equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flexmoe_core.audit_line import Head
from flexmoe_core.errors import MessageError

RECORD = "beside"
SIGNATURE_BYTES = 64
SEALED = "sealed-"
LARGEST_SEALED = 1024


@dataclass(frozen=True)
class Attachments:
    """``audit_head``: where the sender's audit record ended before the line of this message.

    ``ledger_head``: where a site's privacy ledger ends, with what this answer was charged; None where it has none.
    ``signature``: the sender's, of a ``Statement``; empty where nobody signs. ``sealed``: what other sites sealed for
    the recipient alone, by sender: beside a request, so that all sites get the same request.
    """

    audit_head: Head | None = None
    signature: bytes = b""
    ledger_head: Head | None = None
    sealed: Mapping[str, bytes] = field(default_factory=dict)

    def to_values(self) -> dict[str, str | int | bytes]:
        """Flat values, as a message can carry them."""
        values: dict[str, str | int | bytes] = {"signature": self.signature} if self.signature else {}
        for name, head in (("audit", self.audit_head), ("ledger", self.ledger_head)):
            values |= {} if head is None else {f"{name}-count": head.count, f"{name}-hash": head.hash}
        return values | {f"{SEALED}{sender}": body for sender, body in self.sealed.items()}

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> Attachments:
        """What ``to_values`` gave; raises MessageError for anything else."""
        rest = dict(values)
        sealed = _take_sealed(rest)
        match rest.pop("signature", b""):
            case bytes() as signature if len(signature) in {0, SIGNATURE_BYTES}:
                pass
            case _:
                raise MessageError("beside the payload is a signature of another kind")
        audit_head, ledger_head = _take_head(rest, "audit"), _take_head(rest, "ledger")
        if rest:
            raise MessageError("beside the payload is something unknown")
        return cls(audit_head, signature, ledger_head, sealed)

    @property
    def record(self) -> str:
        """The heads in the words that a signature covers."""
        audit, ledger = self.audit_head, self.ledger_head
        words = "" if audit is None else f"{audit.count} {audit.hash}"
        return words if ledger is None else f"{words} ledger {ledger.count} {ledger.hash}"


def _take_sealed(values: dict[str, object]) -> dict[str, bytes]:
    sealed = {}
    for name in [name for name in values if name.startswith(SEALED)]:
        body = values.pop(name)
        if not isinstance(body, bytes) or len(body) > LARGEST_SEALED:
            raise MessageError("beside the payload is something sealed of another kind")
        sealed[name.removeprefix(SEALED)] = body
    return sealed


def _take_head(values: dict[str, object], name: str) -> Head | None:
    keys = (f"{name}-count", f"{name}-hash")
    if values.keys().isdisjoint(keys):
        return None
    match [values.pop(key, None) for key in keys]:
        case [int() as count, str() as digest]:
            try:
                return Head(count, digest)
            except ValueError as error:
                raise MessageError(f"beside the payload is {error}") from None
    raise MessageError("beside the payload is half of a head")
