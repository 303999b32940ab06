"""The errors that a user may meet, and the single problem they are made of.

Every error says what was wrong, where, and what to do. None ever carries a patient's value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong with an input.

    ``file`` is the path as the user knows it, ``place`` a line, column, row or dotted key inside it
    (empty for the whole file), ``what`` the finding, and ``remedy`` what to do about it.
    """

    file: str
    place: str
    what: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.file}, {self.place}" if self.place else self.file
        return f"{where}: {self.what}. {self.remedy}"


class FlexMoeError(Exception):
    """Base of every error that is meant for a user's eyes."""


class InputError(FlexMoeError):
    """A manifest, table or setting is wrong; carries every problem that was found, in order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class CheckpointError(FlexMoeError):
    """A checkpoint or bundle cannot be read, or belongs to another run."""


class MessageError(FlexMoeError):
    """A message does not have the form that the protocol gives it."""


class MaskingRefused(FlexMoeError):
    """A site does not take a step of secure aggregation, because its update could be told apart by it."""


class RunFailed(FlexMoeError):
    """A federation ended without the result that was asked for."""


class AuditError(FlexMoeError):
    """The audit record cannot be written, so that what was to be recorded must not happen."""


class LedgerError(FlexMoeError):
    """The privacy ledger is missing, was changed, or cannot be written, so that nobody may train."""


class BudgetExceeded(FlexMoeError):
    """What was asked would cost more of the patients' privacy than the site allows; nothing was done."""


class PolicyRefusal(FlexMoeError):
    """A run asks for what the site's policy.toml does not allow; every reason, for the site's own eyes."""

    def __init__(self, file: str, reasons: Iterable[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("\n".join(f"{file}: {reason}" for reason in self.reasons))
