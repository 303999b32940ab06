"""What a site makes of the shared model for its own patients: a linear function of the patient beside it.

Shapes: B patients, M modalities, F features of one modality, X columns of all, Y classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flexmoe_core.cohort import Cohort
from flexmoe_core.naming import under_prefix, with_prefix


@dataclass(frozen=True, eq=False)
class SiteEffect:
    """Logits at the site: ``kept`` times the shared model's, and a linear function of the patient (all float64).

    ``intercept_Y`` is for everybody, ``lacking_MY`` for who lacks a modality, ``slopes_FY`` per feature of each
    modality that has some. ``modalities`` are all names in the study's order.
    """

    modalities: Sequence[str]
    kept: float
    intercept_Y: np.ndarray
    lacking_MY: np.ndarray
    slopes_FY: Mapping[str, np.ndarray]

    @classmethod
    def of_columns(
        cls, modalities: Sequence[str], cohort: Cohort, kept: float, intercept_Y: Tensor, slopes_XY: Tensor | None
    ) -> SiteEffect:
        """From the slopes of ``site_columns`` of such patients; None for zeros."""
        widths = {name: x_BF.shape[1] for name, x_BF in _features(cohort, modalities).items()}
        count, classes = len(modalities), len(intercept_Y)
        if slopes_XY is None:
            slopes_XY = intercept_Y.new_zeros(count + sum(widths.values()), classes)
        lacking_MY, *slopes_FY = slopes_XY.split([count, *widths.values()])
        named = {name: own_FY.numpy() for name, own_FY in zip(widths, slopes_FY, strict=True)}
        return cls(modalities, kept, intercept_Y.numpy(), lacking_MY.numpy(), named)

    @classmethod
    def from_arrays(cls, modalities: Sequence[str], arrays: Mapping[str, np.ndarray]) -> SiteEffect:
        """The inverse of ``to_arrays``; raises KeyError where one is missing."""
        kept, intercept_Y, lacking_MY = (arrays[name] for name in ("kept", "intercept", "lacking"))
        return cls(modalities, float(kept), intercept_Y, lacking_MY, under_prefix("slopes", arrays))

    @classmethod
    def mean(cls, effects: Sequence[SiteEffect], weights: Sequence[float]) -> SiteEffect:
        """The weighted mean of effects of one site, at least one, as logits; the weights sum to one."""
        first, *_ = effects
        pairs = list(zip(effects, weights, strict=True))
        return cls(
            first.modalities,
            sum(weight * one.kept for one, weight in pairs),
            np.sum([weight * one.intercept_Y for one, weight in pairs], axis=0),
            np.sum([weight * one.lacking_MY for one, weight in pairs], axis=0),
            {
                name: np.sum([weight * one.slopes_FY[name] for one, weight in pairs], axis=0)
                for name in first.slopes_FY
            },
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it, for a file."""
        fixed = {"kept": np.array(self.kept), "intercept": self.intercept_Y, "lacking": self.lacking_MY}
        return fixed | with_prefix("slopes", self.slopes_FY)

    def logits(self, shared_BY: np.ndarray, cohort: Cohort) -> np.ndarray:
        """(B, Y), of patients to whom the shared model gives these probabilities."""
        logits_BY: np.ndarray = self.kept * finite_logits(shared_BY) + self.intercept_Y
        logits_BY = logits_BY + _lacking(cohort).numpy() @ self.lacking_MY
        for name, x_BF in _features(cohort, self.modalities).items():
            logits_BY = logits_BY + x_BF.numpy() @ self.slopes_FY[name]
        return logits_BY

    def probabilities(self, shared_BY: np.ndarray, cohort: Cohort) -> np.ndarray:
        """(B, Y), of patients to whom the shared model gives these."""
        logits_BY = self.logits(shared_BY, cohort)
        weight_BY = np.exp(logits_BY - logits_BY.max(axis=1, keepdims=True))
        joined_BY: np.ndarray = weight_BY / weight_BY.sum(axis=1, keepdims=True)
        return joined_BY


def finite_logits(probabilities_BY: np.ndarray) -> np.ndarray:
    """Of probabilities; finite also for a class thought impossible."""
    logits_BY: np.ndarray = np.log(np.maximum(probabilities_BY, np.finfo(np.float64).tiny))
    return logits_BY


def site_columns(cohort: Cohort, modalities: Sequence[str]) -> Tensor:
    """(B, X) float64: who lacks which modality, then every modality's features."""
    return torch.cat([_lacking(cohort), *_features(cohort, modalities).values()], dim=1)


def _lacking(cohort: Cohort) -> Tensor:
    """(B, M) float64: 1 where a patient lacks the modality."""
    return (~cohort.observed_BM).double().cpu()


def _features(cohort: Cohort, modalities: Sequence[str]) -> dict[str, Tensor]:
    """(B, F) float64 of each modality whose input is a row of numbers; zero for who lacks it, whatever is there.

    In the study's order: another order of columns would be another last bit.
    """
    lacking_BM = ~cohort.observed_BM.cpu()
    return {
        name: cohort.inputs[name].double().cpu().masked_fill(lacking_BM[:, m, None], 0.0)
        for m, name in enumerate(modalities)
        if name in cohort.inputs and cohort.inputs[name].dim() == 2
    }
