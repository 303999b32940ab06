"""A site's privacy ledger: what was charged to its patients, over all studies.

Epsilon is computed over all events at once, never added up. A charge is on the disk before the training that it pays
for begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import TypeAdapter, ValidationError

from client.ledger_file import LedgerFile, LedgerHead, is_started, locked
from flexmoe_core.audit_line import Entry, Fact
from flexmoe_core.errors import BudgetExceeded
from flexmoe_core.privacy.accounting import epsilon_of
from flexmoe_core.privacy.events import PrivacyEvent

STARTED, CHARGED = "started", "charged"
ROUNDING = 1e-9
"""Relative: sums of float64 in another order."""


@dataclass(frozen=True)
class ChargePlace:
    """What is charged for: the question of a run, and the SHA-256 of the request."""

    study: str
    run: str
    question: Literal["train", "finish"]
    round: int | None
    attempt: int
    request: str


@dataclass(frozen=True)
class Guarantee:
    """What a run promises to every patient."""

    epsilon: float
    delta: float


@dataclass(frozen=True)
class Caps:
    """The most that may ever be spent, in all studies together and in one, at ``delta``; None: no limit.

    ``run`` is what the run under way has promised.
    """

    lifetime: float | None
    study: float | None
    delta: float
    run: Guarantee | None = None


@dataclass(frozen=True)
class Charge:
    """What one line, or what was carried over from before the ledger, costs; ``delta`` is that of its guarantee.

    ``run`` is empty where nobody knows it.
    """

    study: str
    event: PrivacyEvent
    delta: float | None = None
    run: str = ""

    def to_facts(self) -> dict[str, Fact]:
        """As facts of a line."""
        return {"study": self.study, "event": self.event.model_dump(), "delta": self.delta, "run": self.run}


class PrivacyLedger:
    """The ledger in a site's state folder. Processes may share it: each charge is under a lock."""

    def __init__(self, state: Path, key: Ed25519PrivateKey) -> None:
        self._state, self._key = state, key
        self._file = LedgerFile(state, key)
        self._charges: list[Charge] = []

    @classmethod
    def open(cls, state: Path, key: Ed25519PrivateKey) -> PrivacyLedger:
        """Read and check the whole ledger. Raises LedgerError where it is missing, cut, edited or another site's."""
        ledger = cls(state, key)
        if not state.is_dir():
            raise ledger._file.error("was never started")
        with locked(state):
            ledger._read_on()
        return ledger

    @classmethod
    def open_or_create(cls, state: Path, key: Ed25519PrivateKey) -> PrivacyLedger:
        """For simulations alone: begin where there was never a ledger, as if nothing had been spent."""
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        ledger = cls(state, key)
        with locked(state):
            if is_started(state):
                ledger._read_on()
            else:
                ledger._start("a simulation", (), {"before_is": "nothing"})
        return ledger

    @classmethod
    def start(
        cls, state: Path, key: Ed25519PrivateKey, reason: str, before: Sequence[Charge], facts: Mapping[str, Fact]
    ) -> PrivacyLedger:
        """Write the first line of a ledger: why, what was charged before, and other facts. Raises LedgerError."""
        ledger = cls(state, key)
        with locked(state):
            if is_started(state):
                raise ledger._file.error("is there already, and is not replaced")
            ledger._start(reason, before, facts)
        return ledger

    @property
    def head(self) -> LedgerHead:
        """Where the ledger ends, as this process knows it."""
        return self._file.head

    @property
    def charges(self) -> tuple[Charge, ...]:
        """Everything that was charged, in order."""
        return tuple(self._charges)

    def epsilon(self, delta: float, study: str | None = None) -> float:
        """Of all events together, or of those of one study."""
        return epsilon_of((one.event for one in self._charges if study in {None, one.study}), delta)

    def charge(self, event: PrivacyEvent, place: ChargePlace, delta: float, caps: Caps) -> LedgerHead:
        """Charge an event, whatever was charged for the same request before.

        ``delta`` is that of the run's guarantee, for the record. The line is on the disk when this returns. Raises
        BudgetExceeded before anything is written if a cap would not hold, LedgerError where the ledger is not
        whole or cannot be written.
        """
        charge = Charge(place.study, event, delta, place.run)
        with locked(self._state):
            self._read_on()
            self._require_budget(charge, caps)
            head = self._file.append(CHARGED, {**asdict(place), **charge.to_facts()})
            self._charges.append(charge)
        return head

    def _start(self, reason: str, before: Sequence[Charge], facts: Mapping[str, Fact]) -> None:
        public = self._key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        charged = [one.to_facts() for one in before]
        self._file.append(STARTED, {"reason": reason, "key": public, "before": charged, **facts})
        self._charges += before

    def _read_on(self) -> None:
        for entry in self._file.read_on():
            try:
                self._charges += charges_of(entry)
            except (ValidationError, LookupError, TypeError):
                raise self._file.error(f"has a line {entry.number} of an unknown kind") from None

    def _require_budget(self, charge: Charge, caps: Caps) -> None:
        spent = [*self._charges, charge]
        of_study = [one for one in spent if one.study == charge.study]
        of_run = [one for one in spent if one.run == charge.run]
        limits = [
            (caps.study, caps.delta, of_study, f"the study {charge.study}", "this site allows"),
            (caps.lifetime, caps.delta, spent, "all studies together", "this site allows"),
        ]
        if caps.run is not None:
            limits.append((caps.run.epsilon, caps.run.delta, of_run, "this run", "it has promised"))
        for most, delta, charges, what, says in limits:
            if most is None:
                continue
            total = epsilon_of((one.event for one in charges), delta)
            if not total <= most * (1 + ROUNDING):
                raise BudgetExceeded(
                    f"{what} would have cost epsilon {total:.4g} at delta {delta:g}, and {says} {most:g}. Nothing "
                    "was trained or charged. 'flexmoe-client privacy status' shows what is left."
                )


def charges_of(entry: Entry) -> list[Charge]:
    """What a line charges. Raises LookupError, TypeError or ValidationError where it is not one of a ledger."""
    if entry.event == STARTED:
        return [_charge(one) for one in entry.facts["before"]]
    if entry.event == CHARGED:
        return [_charge(entry.facts)]
    raise LookupError(entry.event)


def _charge(facts: Any) -> Charge:  # noqa: ANN401
    event = EVENTS.validate_python(facts["event"])
    return Charge(str(facts["study"]), event, facts.get("delta"), str(facts.get("run", "")))


EVENTS: TypeAdapter[PrivacyEvent] = TypeAdapter(PrivacyEvent)
