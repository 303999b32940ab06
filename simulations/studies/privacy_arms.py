"""What the study of privacy compares: one federation under each protection, and what is simpler.

Only the protection differs between the federations: all start from the preset that patient-level privacy allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from flexmoe_core.settings import DEFAULT_PRESET
from flexmoe_core.validation import FrozenModel
from server.settings import RunSettings, settings_with
from simulations.baselines.private_logistic import LogisticSettings
from simulations.benchmark_data import DataSet

Family = Literal[
    "patient", "site", "secure-aggregation", "none", "default", "logistic", "pooled-logistic", "majority"
]
TITLES: Mapping[Family, str] = MappingProxyType(
    {
        "patient": "Flex-MoE, patient-level DP",
        "site": "Flex-MoE, site-level DP",
        "secure-aggregation": "Flex-MoE, secure aggregation alone",
        "none": "Flex-MoE, unprotected",
        "default": "Flex-MoE, unprotected, own preset",
        "logistic": "logistic regression, patient-level DP",
        "pooled-logistic": "pooled logistic regression",
        "majority": "majority class",
    }
)
"""Of each family, in the order of the tables."""

PRESET = "private"
DEFAULT_PRESETS: Mapping[str, str] = MappingProxyType({"multiple-features": "medium"})
"""What one would take without privacy, its own preset, where that is not the default."""
PATIENT_DELTA, SITE_DELTA = 1e-3, 1e-2

Training = RunSettings | LogisticSettings


class Arm(FrozenModel):
    """A family at one epsilon; None is infinite, which guarantees nothing."""

    family: Family
    epsilon: float | None = None

    @property
    def title(self) -> str:
        """What a progress bar calls it."""
        return f"{TITLES[self.family]}, epsilon {epsilon_text(self.epsilon)}"

    @property
    def unprotected(self) -> Arm:
        """The same without protection."""
        return Arm(family="logistic" if self.family == "logistic" else "none")


def arms_of(epsilons: Sequence[float]) -> list[Arm]:
    """All that is compared, in the order of the tables."""
    return list(_arms(epsilons))


def epsilon_text(epsilon: float | None) -> str:
    """``8`` or the sign of infinity."""
    return "\N{INFINITY}" if epsilon is None else f"{epsilon:g}"


def training_of(arm: Arm, data: DataSet, seed: int, changes: Sequence[str] = ()) -> Training | None:
    """The settings of a job; None of what is trained by no settings of ours. Raises InputError.

    ``changes`` are overrides of a run's settings, as of ``--set``.
    """
    match arm.family:
        case "pooled-logistic" | "majority":
            return None
        case "logistic":
            return LogisticSettings(epsilon=arm.epsilon, delta=PATIENT_DELTA)
        case "default":
            return settings_with(changes, DEFAULT_PRESETS.get(data.dataset, DEFAULT_PRESET), seed)
        case _:
            sites = int(data.load(seed).patients["site"].nunique())
            return settings_with([*_protection(arm, sites), *changes], PRESET, seed)


def _arms(epsilons: Sequence[float]) -> Iterator[Arm]:
    for family in TITLES:
        if family in ("patient", "site", "logistic"):
            yield from (Arm(family=family, epsilon=epsilon) for epsilon in epsilons)
        if family not in ("patient", "site"):
            yield Arm(family=family)


def _protection(arm: Arm, sites: int) -> list[str]:
    match arm.family:
        case "patient":
            return [f"privacy.patient.epsilon={arm.epsilon}", f"privacy.patient.delta={PATIENT_DELTA}"]
        case "site":
            wanted = {"epsilon": arm.epsilon, "delta": SITE_DELTA, "cohort": sites}
            return [f"privacy.site.{key}={value}" for key, value in wanted.items()]
        case "secure-aggregation":
            return [f"privacy.secure_aggregation.threshold={sites // 2 + 1}"]
        case _:
            return []
