"""What stands between a private answer and the patients: secret randomness, and a ledger that is charged first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from client.ledger import Caps, ChargePlace, Guarantee, PrivacyLedger
from client.ledger_start import node_ledger
from client.policy import Policy
from flexmoe_core.errors import MessageError
from flexmoe_core.messages import FinishRequest, TrainRequest
from flexmoe_core.privacy.events import PrivacyEvent, Unprotected
from flexmoe_core.privacy.secret_source import SecretSource
from flexmoe_core.privacy.settings import PatientPrivacy
from flexmoe_core.signatures import digest_of


@dataclass(frozen=True)
class LedgerAccess:
    """Where a node's ledger is, the file of the key that signs it, and whether a simulation may begin one."""

    state: Path
    identity: Path | None = None
    create: bool = False


@dataclass(frozen=True)
class Protection:
    """Patient-level privacy for the answer to one request."""

    settings: PatientPrivacy
    source: SecretSource
    ledger: LedgerAccess
    place: ChargePlace
    caps: Caps

    @classmethod
    def of(
        cls,
        request: TrainRequest | FinishRequest,
        request_bytes: bytes,
        ledger: LedgerAccess,
        policy: Policy,
        source: SecretSource,
    ) -> Protection | None:
        """What the request's terms ask for; None without patient-level privacy."""
        terms = request.terms
        if terms.privacy.patient is None:
            return None
        training = isinstance(request, TrainRequest)
        place = ChargePlace(
            study=terms.study.name,
            run=terms.run,
            question="train" if training else "finish",
            round=request.round,
            attempt=request.attempt if isinstance(request, TrainRequest) else 1,
            request=digest_of(request_bytes),
        )
        settings = terms.privacy.patient
        # Known randomness, of a test, protects nobody: the ledger says so, and there is no promise to keep.
        promise = Guarantee(settings.epsilon, settings.delta) if source.secret else None
        caps = replace(policy.caps(settings.delta), run=promise)
        return cls(settings, source, ledger, place, caps)

    def charge(self, event: PrivacyEvent) -> None:
        """Write a cost into the ledger before it arises.

        Raises BudgetExceeded where it may not arise, MessageError where it is another than before in the run, and
        LedgerError where the ledger is not whole.
        """
        charged = event if self.source.secret else Unprotected()
        ledger = node_ledger(self.ledger.state, self.ledger.identity, self.ledger.create)
        self._require_as_before(charged, ledger)
        ledger.charge(charged, self.place, self.settings.delta, self.caps)

    def _require_as_before(self, event: PrivacyEvent, ledger: PrivacyLedger) -> None:
        """A run keeps to one mechanism: composition is proven for noise that no earlier answer had a say in."""
        own = [one.event for one in ledger.charges if one.run == self.place.run]
        if any(one.mechanism == event.mechanism and one != event for one in own):
            raise MessageError("the request asks for another noise or sampling rate than before in this run")
