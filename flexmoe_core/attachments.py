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

    ``signature``: the sender's, of a ``Statement``; empty where nobody signs.
    """

    audit_head: Head | None = None
    signature: bytes = b""

    def to_values(self) -> dict[str, str | int | bytes]:
        """Flat values, as a message can carry them."""
        head = self.audit_head
        values: dict[str, str | int | bytes] = {"signature": self.signature} if self.signature else {}
        return values if head is None else values | {"audit-count": head.count, "audit-hash": head.hash}

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> Attachments:
        """What ``to_values`` gave; raises MessageError for anything else."""
        rest = dict(values)
        match rest.pop("signature", b""):
            case bytes() as signature if len(signature) in {0, SIGNATURE_BYTES}:
                pass
            case _:
                raise MessageError("beside the payload is a signature of another kind")
        match rest:
            case {"audit-count": int() as count, "audit-hash": str() as digest, **others} if not others:
                try:
                    return cls(Head(count, digest), signature)
                except ValueError as error:
                    raise MessageError(f"beside the payload is {error}") from None
            case {**others} if not others:
                return cls(None, signature)
        raise MessageError("beside the payload is something unknown")

    @property
    def record(self) -> str:
        """The head in the words that a signature covers."""
        return "" if self.audit_head is None else f"{self.audit_head.count} {self.audit_head.hash}"
