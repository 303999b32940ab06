"""policy.toml: what a hospital demands of every run, whatever a coordinator asks for.

The file stands beside site.toml. Where there is none, the site has no demands; where there is one, it is enforced
before any patient is read, and a file that cannot be read refuses everything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, StrictBool, model_validator

from client.ledger import Caps
from flexmoe_core.errors import PolicyRefusal
from flexmoe_core.messages import Terms
from flexmoe_core.privacy.accounting import SMALLEST_DELTA
from flexmoe_core.study import Study
from flexmoe_core.validation import Finding, FrozenModel, SafeName, raise_if_any, read_toml

POLICY_FILE = "policy.toml"

Epsilon = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class PatientDemands(FrozenModel):
    """Patient-level differential privacy. ``delta`` is the largest a run may have, and that at which caps hold."""

    required: StrictBool = True
    max_epsilon_per_study: Epsilon | None = None
    max_epsilon_lifetime: Epsilon | None = None
    delta: float = Field(default=1e-3, ge=SMALLEST_DELTA, lt=1)

    @model_validator(mode="after")
    def _caps_hold(self) -> Self:
        if not self.required and (self.max_epsilon_per_study or self.max_epsilon_lifetime):
            what = "is false, so that a run without any protection would pass by the largest epsilon"
            raise_if_any([Finding(what, "Set it to true, or leave out max_epsilon.", "required")])
        return self


class AggregationDemands(FrozenModel):
    """Secure aggregation. ``min_cohort``: the fewest sites of which a sum may be made."""

    required: StrictBool = True
    min_cohort: int = Field(default=3, ge=2)


class DisclosureDemands(FrozenModel):
    """Numbers of patients per combination, and scores of them: whether they may leave, and from how many patients."""

    allow_counts: StrictBool
    min_cell: int = Field(default=5, ge=1)


class AllowedRuns(FrozenModel):
    """Studies by name, and code; None: any."""

    studies: dict[SafeName, Hash] | None = None
    bundles: tuple[Hash, ...] | None = None


class Policy(FrozenModel):
    """policy.toml; a section that is left out demands nothing."""

    patient_privacy: PatientDemands | None = None
    secure_aggregation: AggregationDemands | None = None
    disclosure: DisclosureDemands | None = None
    allowed: AllowedRuns = AllowedRuns()

    def caps(self, delta: float) -> Caps:
        """The most that the ledger may ever hold; ``delta`` where the policy has no section for patients."""
        demands = self.patient_privacy
        if demands is None:
            return Caps(None, None, delta)
        return Caps(demands.max_epsilon_lifetime, demands.max_epsilon_per_study, demands.delta)


def read_policy(folder: Path) -> Policy | None:
    """The policy of a site folder, None where it has none. Raises InputError with every problem."""
    path = folder / POLICY_FILE
    if not path.exists() and not path.is_symlink():
        return None
    return read_toml(path, Policy)


def study_hash(study: Study) -> str:
    """What [allowed] studies names a study by: any change of it is another study."""
    return hashlib.sha256(study.to_json().encode()).hexdigest()


def check_policy(policy: Policy, terms: Terms, source_is_secret: bool, bundle: str | None) -> None:
    """Raise PolicyRefusal with every reason against a run.

    ``source_is_secret`` is false where somebody may know the noise. ``bundle`` is the hash of the code that runs,
    None where nobody knows it.
    """
    reasons = [
        *_about_patients(policy.patient_privacy, terms),
        *_about_aggregation(policy.secure_aggregation, terms),
        *_about_disclosure(policy.disclosure, terms),
        *_about_what_runs(policy.allowed, terms, bundle),
    ]
    if not source_is_secret:
        reasons.append("the randomness of this run may be known to somebody, so that its noise protects nobody")
    if reasons:
        raise PolicyRefusal(POLICY_FILE, reasons)


def _about_patients(demands: PatientDemands | None, terms: Terms) -> Iterator[str]:
    patient = terms.privacy.patient
    if demands is None:
        return
    if patient is None:
        if demands.required:
            yield "the run has no patient-level differential privacy (patient_privacy.required)"
        return
    if patient.delta > demands.delta:
        yield f"the run's delta {patient.delta:g} is above {demands.delta:g} (patient_privacy.delta)"
    for key in ("max_epsilon_per_study", "max_epsilon_lifetime"):
        most = getattr(demands, key)
        if most is not None and patient.epsilon > most:
            yield f"the run's epsilon {patient.epsilon:g} is above {most:g} (patient_privacy.{key})"


def _about_aggregation(demands: AggregationDemands | None, terms: Terms) -> Iterator[str]:
    masked = terms.privacy.secure_aggregation
    if demands is None:
        return
    if masked is None:
        if demands.required:
            yield "the run has no secure aggregation (secure_aggregation.required)"
    elif masked.threshold < demands.min_cohort:
        fewest = f"may be of {masked.threshold} sites, fewer than {demands.min_cohort}"
        yield f"a sum of the run {fewest} (secure_aggregation.min_cohort)"


def _about_disclosure(demands: DisclosureDemands | None, terms: Terms) -> Iterator[str]:
    if demands is None or terms.privacy.patient is not None:
        return  # under patient-level privacy no such number leaves
    if not demands.allow_counts:
        yield "the run asks for numbers of patients per combination (disclosure.allow_counts)"
    elif terms.min_cell < demands.min_cell:
        yield f"the run's min_cell {terms.min_cell} is below {demands.min_cell} (disclosure.min_cell)"


def _about_what_runs(allowed: AllowedRuns, terms: Terms, bundle: str | None) -> Iterator[str]:
    if allowed.studies is not None:
        study, found = terms.study, study_hash(terms.study)
        if study.name not in allowed.studies:
            yield f"the study {study.name} is not on the list (allowed.studies); its SHA-256 is {found}"
        elif allowed.studies[study.name] != found:
            yield f"the study {study.name} is not the one on the list (allowed.studies); its SHA-256 is {found}"
    if allowed.bundles is not None and bundle not in allowed.bundles:
        yield f"the bundle of code that runs, {bundle or 'which has no hash'}, is not on the list (allowed.bundles)"
