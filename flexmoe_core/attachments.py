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

    ``signature``: the sender's, of a ``Statement``; empty where nobody signs. ``sealed``: what other sites sealed for
    the recipient alone, by sender: beside a request, so that all sites get the same request.
    """

    audit_head: Head | None = None
    signature: bytes = b""
    sealed: Mapping[str, bytes] = field(default_factory=dict)

    def to_values(self) -> dict[str, str | int | bytes]:
        """Flat values, as a message can carry them."""
        head = self.audit_head
        values: dict[str, str | int | bytes] = {"signature": self.signature} if self.signature else {}
        values |= {f"{SEALED}{sender}": body for sender, body in self.sealed.items()}
        return values if head is None else values | {"audit-count": head.count, "audit-hash": head.hash}

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> Attachments:
        """What ``to_values`` gave; raises MessageError for anything else."""
        rest, sealed = dict(values), {}
        for name in [name for name in rest if name.startswith(SEALED)]:
            body = rest.pop(name)
            if not isinstance(body, bytes) or len(body) > LARGEST_SEALED:
                raise MessageError("beside the payload is something sealed of another kind")
            sealed[name.removeprefix(SEALED)] = body
        match rest.pop("signature", b""):
            case bytes() as signature if len(signature) in {0, SIGNATURE_BYTES}:
                pass
            case _:
                raise MessageError("beside the payload is a signature of another kind")
        match rest:
            case {"audit-count": int() as count, "audit-hash": str() as digest, **others} if not others:
                try:
                    return cls(Head(count, digest), signature, sealed)
                except ValueError as error:
                    raise MessageError(f"beside the payload is {error}") from None
            case {**others} if not others:
                return cls(None, signature, sealed)
        raise MessageError("beside the payload is something unknown")

    @property
    def record(self) -> str:
        """The head in the words that a signature covers."""
        return "" if self.audit_head is None else f"{self.audit_head.count} {self.audit_head.hash}"
