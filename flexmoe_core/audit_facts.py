"""Facts that the audit records of a hospital and of the coordinator have in common."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from flexmoe_core.audit_line import Fact

BUNDLE_VARIABLE = "FLEXMOE_BUNDLE"


@dataclass(frozen=True)
class PrivacyCost:
    """What an answer cost of the patients' privacy, by the mechanism that protected it."""

    mechanism: str = "none"

    def to_facts(self) -> dict[str, Fact]:
        """The cost as facts of a record."""
        return asdict(self)


def bytes_facts(data: bytes) -> dict[str, Fact]:
    """Size and SHA-256."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def bundle_of(environment: Mapping[str, str] = os.environ) -> str | None:
    """The hash of the code bundle that this process runs; None where its environment does not name one."""
    named = environment.get(BUNDLE_VARIABLE, "")
    return named if re.fullmatch(r"[0-9A-Za-z:_-]{1,128}", named) else None
