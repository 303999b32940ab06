"""What travels beside a payload in a message, and is never part of its bytes: equal answers stay equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flexmoe_core.audit_line import Head
from flexmoe_core.errors import MessageError

RECORD = "beside"
SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class Attachments:
    """``audit_head``: where the sender's audit record ended before the line of this message.

    ``ledger_head``: where a site's privacy ledger ends, with what this answer was charged; None where it has none.

    ``signature``: the sender's, of a ``Statement``; empty where nobody signs.
    """

    audit_head: Head | None = None
    signature: bytes = b""
    ledger_head: Head | None = None

    def to_values(self) -> dict[str, str | int | bytes]:
        """Flat values, as a message can carry them."""
        values: dict[str, str | int | bytes] = {"signature": self.signature} if self.signature else {}
        for name, head in (("audit", self.audit_head), ("ledger", self.ledger_head)):
            values |= {} if head is None else {f"{name}-count": head.count, f"{name}-hash": head.hash}
        return values

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> Attachments:
        """What ``to_values`` gave; raises MessageError for anything else."""
        rest = dict(values)
        match rest.pop("signature", b""):
            case bytes() as signature if len(signature) in {0, SIGNATURE_BYTES}:
                pass
            case _:
                raise MessageError("beside the payload is a signature of another kind")
        audit_head, ledger_head = _take_head(rest, "audit"), _take_head(rest, "ledger")
        if rest:
            raise MessageError("beside the payload is something unknown")
        return cls(audit_head, signature, ledger_head)

    @property
    def record(self) -> str:
        """The heads in the words that a signature covers."""
        audit, ledger = self.audit_head, self.ledger_head
        words = "" if audit is None else f"{audit.count} {audit.hash}"
        return words if ledger is None else f"{words} ledger {ledger.count} {ledger.hash}"


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
