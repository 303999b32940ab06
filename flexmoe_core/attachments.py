"""What travels beside a payload in a message, and is never part of its bytes: equal answers stay equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flexmoe_core.audit_line import Head
from flexmoe_core.errors import MessageError

RECORD = "beside"


@dataclass(frozen=True)
class Attachments:
    """``audit_head``: where the sender's audit record ended before the line of this message."""

    audit_head: Head | None = None

    def to_values(self) -> dict[str, str | int]:
        """Flat values, as a message can carry them."""
        head = self.audit_head
        return {} if head is None else {"audit-count": head.count, "audit-hash": head.hash}

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> Attachments:
        """What ``to_values`` gave; raises MessageError for anything else."""
        match dict(values):
            case {"audit-count": int() as count, "audit-hash": str() as digest, **rest} if not rest:
                try:
                    return cls(Head(count, digest))
                except ValueError as error:
                    raise MessageError(f"beside the payload is {error}") from None
            case {**rest} if not rest:
                return cls()
        raise MessageError("beside the payload is something unknown")
