"""What a site makes of the shared model for its own patients: an intercept, and a share for its own regression.

Hospitals differ in prevalence by more than their patients' findings explain: the intercept is the random intercept of
a mixed model. And the same finding does not mean the same everywhere: a regression on what the site measures, learned
from its patients alone, speaks beside the shared model, as loud as it deserves on patients whom neither has seen.

Shapes: B patients, M modalities, F features of one modality, X columns of a regression, Y classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flexmoe_core.cohort import Cohort
from flexmoe_core.naming import under_prefix, with_prefix
from flexmoe_core.settings import SiteSettings

MOST_STEPS = 500
FLAT = 1e-9  # gradient at which a fit ends, in patients
SHARES = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, 241)))  # even in the logit, where the prior is normal


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
    def from_arrays(cls, modalities: Sequence[str], arrays: Mapping[str, np.ndarray]) -> SiteEffect:
        """The inverse of ``to_arrays``; raises KeyError where one is missing."""
        kept, intercept_Y, lacking_MY = (arrays[name] for name in ("kept", "intercept", "lacking"))
        return cls(modalities, float(kept), intercept_Y, lacking_MY, under_prefix("slopes", arrays))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it, for a file."""
        fixed = {"kept": np.array(self.kept), "intercept": self.intercept_Y, "lacking": self.lacking_MY}
        return fixed | with_prefix("slopes", self.slopes_FY)

    def blend(self, other: SiteEffect, share: float) -> SiteEffect:
        """The other's logits with that share, these with the rest."""
        own = 1.0 - share
        return SiteEffect(
            self.modalities,
            own * self.kept + share * other.kept,
            own * self.intercept_Y + share * other.intercept_Y,
            own * self.lacking_MY + share * other.lacking_MY,
            {name: own * self.slopes_FY[name] + share * other.slopes_FY[name] for name in self.slopes_FY},
        )

    def logits(self, shared_BY: np.ndarray, cohort: Cohort) -> np.ndarray:
        """(B, Y), of patients to whom the shared model gives these probabilities."""
        logits_BY: np.ndarray = self.kept * _logits(shared_BY) + self.intercept_Y
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


def fit_intercept(
    modalities: Sequence[str], shared_BY: np.ndarray, cohort: Cohort, settings: SiteSettings
) -> SiteEffect:
    """The shared model with the most probable intercept of these patients under its normal prior."""
    ones_B1 = torch.full((len(cohort), 1), settings.intercept, dtype=torch.float64)
    found_1Y = _most_probable(ones_B1, torch.from_numpy(_logits(shared_BY)), cohort.labels_B)
    return _effect(modalities, cohort, 1.0, found_1Y[0] * settings.intercept, None)


def fit_regression(modalities: Sequence[str], cohort: Cohort, classes: int, settings: SiteSettings) -> SiteEffect:
    """The most probable logistic regression of these patients, without the shared model.

    On standardized columns, so that the normal prior means the same for each; all of them together have the spread
    ``settings.regression`` for a typical patient.
    """
    x_BX = torch.cat([_lacking(cohort), *_features(cohort, modalities).values()], dim=1)
    mean_X, deviation_X = x_BX.mean(dim=0), x_BX.std(dim=0, correction=0)
    varying_X = deviation_X > 1e-9
    spread = settings.regression / max(1.0, float(varying_X.sum())) ** 0.5
    spread_X = torch.where(varying_X, spread / deviation_X, 0.0)
    ones_B1 = torch.full((len(cohort), 1), settings.intercept, dtype=torch.float64)
    columns_BX = torch.cat([ones_B1, (x_BX - mean_X) * spread_X], dim=1)
    found_XY = _most_probable(columns_BX, torch.zeros(len(cohort), classes, dtype=torch.float64), cohort.labels_B)
    slopes_XY = found_XY[1:] * spread_X[:, None]
    return _effect(modalities, cohort, 0.0, found_XY[0] * settings.intercept - mean_X @ slopes_XY, slopes_XY)


def fit_effect(
    modalities: Sequence[str],
    training: tuple[np.ndarray, Cohort],
    validation: tuple[np.ndarray, Cohort],
    settings: SiteSettings,
) -> SiteEffect:
    """All that a site adds: what the shared model says of patients comes with them.

    Validation patients choose the regression's share, then teach too. Without them nobody could tell what the
    regression is worth, and it has none.
    """
    patients = training[1] + validation[1]
    shared = fit_intercept(modalities, np.concatenate([training[0], validation[0]]), patients, settings)
    if settings.regression == 0 or len(validation[1]) == 0:
        return shared
    classes = training[0].shape[1]
    own = fit_regression(modalities, training[1], classes, settings).logits(*validation)
    others = fit_intercept(modalities, *training, settings).logits(*validation)
    share = best_share(others, own, validation[1].labels_B.numpy())
    return shared.blend(fit_regression(modalities, patients, classes, settings), share)


def best_share(first_BY: np.ndarray, second_BY: np.ndarray, labels_B: np.ndarray) -> float:
    """The most probable share of the second logits; a priori its logit is standard normal."""
    mixed_SBY = first_BY + SHARES[:, None, None] * (second_BY - first_BY)
    chosen_SB = mixed_SBY[:, np.arange(len(labels_B)), labels_B]
    losses_S = (np.logaddexp.reduce(mixed_SBY, axis=2) - chosen_SB).sum(axis=1)
    return float(SHARES[np.argmin(losses_S + np.log(SHARES / (1.0 - SHARES)) ** 2 / 2)])


def _effect(
    modalities: Sequence[str], cohort: Cohort, kept: float, intercept_Y: Tensor, slopes_XY: Tensor | None
) -> SiteEffect:
    """From the slopes of all columns, none for zeros: who lacks which modality, then every modality's features."""
    widths = {name: x_BF.shape[1] for name, x_BF in _features(cohort, modalities).items()}
    count, classes = len(modalities), len(intercept_Y)
    if slopes_XY is None:
        slopes_XY = intercept_Y.new_zeros(count + sum(widths.values()), classes)
    lacking_MY, *slopes_FY = slopes_XY.split([count, *widths.values()])
    named = {name: own_FY.numpy() for name, own_FY in zip(widths, slopes_FY, strict=True)}
    return SiteEffect(modalities, kept, intercept_Y.numpy(), lacking_MY.numpy(), named)


def _logits(probabilities_BY: np.ndarray) -> np.ndarray:
    """Finite also for a class thought impossible."""
    logits_BY: np.ndarray = np.log(np.maximum(probabilities_BY, np.finfo(np.float64).tiny))
    return logits_BY


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


def _most_probable(x_BX: Tensor, offset_BY: Tensor, labels_B: Tensor) -> Tensor:
    """(X, Y) with the highest posterior under a standard normal prior. The objective is strictly convex."""
    found_XY = torch.zeros(x_BX.shape[1], offset_BY.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [found_XY], max_iter=MOST_STEPS, tolerance_grad=FLAT, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(offset_BY + x_BX @ found_XY, labels_B, reduction="sum") + found_XY.square().sum() / 2
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return found_XY.detach()
