"""How a site fits what it adds to the shared model: an intercept, and a share for its own regression.

Hospitals differ in prevalence by more than their patients' findings explain: the intercept is the random intercept of
a mixed model. And the same finding does not mean the same everywhere: a regression on what the site measures, learned
from its patients alone, speaks beside the shared model, as loud as it deserves on patients whom neither has seen.

Shapes: B patients, X columns of a regression, S shares, Y classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from torch.nn.functional import cross_entropy

from flexmoe_core.cohort import Cohort
from flexmoe_core.settings import SiteSettings
from flexmoe_core.site_effect import SiteEffect, finite_logits, site_columns

FOLDS = 5
MOST_STEPS = 200
FLAT, CLOSE = 1e-9, 1e-4  # a fit ends at a gradient of such a norm, in patients; relative error of its steps
LEAST_DEVIATION = 1e-9
SHARES = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, 241)))  # even in the logit, where the prior is normal


def fit_intercept(
    modalities: Sequence[str], shared_BY: np.ndarray, cohort: Cohort, settings: SiteSettings
) -> SiteEffect:
    """The shared model with the most probable intercept of these patients under its normal prior."""
    ones_B1 = torch.full((len(cohort), 1), settings.intercept, dtype=torch.float64)
    found_1Y = _most_probable(ones_B1, torch.from_numpy(finite_logits(shared_BY)), cohort.labels_B)
    return SiteEffect.of_columns(modalities, cohort, 1.0, found_1Y[0] * settings.intercept, None)


def fit_regression(
    modalities: Sequence[str], cohort: Cohort, classes: int, spread: float, settings: SiteSettings
) -> SiteEffect:
    """The most probable logistic regression of these patients, without the shared model.

    On standardized columns, so that the normal prior means the same for each; all of them together have that spread,
    in logits, for a typical patient.
    """
    x_BX = site_columns(cohort, modalities)
    mean_X, deviation_X = x_BX.mean(dim=0), x_BX.std(dim=0, correction=0)
    varying_X = deviation_X > LEAST_DEVIATION
    each = spread / max(1.0, float(varying_X.sum())) ** 0.5
    spread_X = torch.where(varying_X, each / deviation_X, 0.0)
    ones_B1 = torch.full((len(cohort), 1), settings.intercept, dtype=torch.float64)
    columns_BX = torch.cat([ones_B1, (x_BX - mean_X) * spread_X], dim=1)
    found_XY = _most_probable(columns_BX, torch.zeros(len(cohort), classes, dtype=torch.float64), cohort.labels_B)
    slopes_XY = found_XY[1:] * spread_X[:, None]
    intercept_Y = found_XY[0] * settings.intercept - mean_X @ slopes_XY
    return SiteEffect.of_columns(modalities, cohort, 0.0, intercept_Y, slopes_XY)


def spread_weights(
    modalities: Sequence[str], cohort: Cohort, classes: int, settings: SiteSettings
) -> tuple[float, ...]:
    """How far each spread of ``settings.regression`` (at least one) is to be believed: they sum to one.

    By the likelihood of held-out patients; the hard choice of one spread would change with the folds.
    """
    folds = list(_folds(cohort))
    losses = [
        sum(
            _loss_on(held_out, fit_regression(modalities, others, classes, spread, settings))
            for others, held_out in folds
        )
        for spread in settings.regression
    ]
    weights = np.exp(min(losses) - np.array(losses))
    return tuple((weights / weights.sum()).tolist())


def fit_share(
    modalities: Sequence[str],
    training: Cohort,
    validation: Cohort,
    shared_BY: np.ndarray,
    settings: SiteSettings,
) -> float:
    """The share that a regression on training patients deserves beside the shared model with the site's intercept,
    whose logits of validation patients are ``shared_BY``.

    Without validation patients nobody could tell what it is worth, and it has none.
    """
    if not settings.regression or len(validation) == 0:
        return 0.0
    regression = _mean_regression(modalities, training, shared_BY.shape[1], settings)
    own_BY = regression.logits(np.ones_like(shared_BY), validation)
    return best_share(shared_BY, own_BY, validation.labels_B.numpy())


def fit_effect(
    modalities: Sequence[str], shared_BY: np.ndarray, patients: Cohort, share: float, settings: SiteSettings
) -> SiteEffect:
    """All that a site adds to the shared model, which gives its patients the probabilities ``shared_BY``."""
    shared = fit_intercept(modalities, shared_BY, patients, settings)
    if share == 0.0:
        return shared
    own = _mean_regression(modalities, patients, shared_BY.shape[1], settings)
    return SiteEffect.mean((shared, own), (1.0 - share, share))


def best_share(first_BY: np.ndarray, second_BY: np.ndarray, labels_B: np.ndarray) -> float:
    """The most probable share of the second logits; a priori its logit is standard normal."""
    mixed_SBY = first_BY + SHARES[:, None, None] * (second_BY - first_BY)
    chosen_SB = mixed_SBY[:, np.arange(len(labels_B)), labels_B]
    losses_S = (np.logaddexp.reduce(mixed_SBY, axis=2) - chosen_SB).sum(axis=1)
    return float(SHARES[np.argmin(losses_S + np.log(SHARES / (1.0 - SHARES)) ** 2 / 2)])


def _mean_regression(modalities: Sequence[str], cohort: Cohort, classes: int, settings: SiteSettings) -> SiteEffect:
    weights = spread_weights(modalities, cohort, classes, settings)
    regressions = [fit_regression(modalities, cohort, classes, spread, settings) for spread in settings.regression]
    return SiteEffect.mean(regressions, weights)


def _folds(cohort: Cohort) -> Iterator[tuple[Cohort, Cohort]]:
    """The others and the held-out patients of each fold; none for one patient. Classes are dealt in file order."""
    order_B = cohort.labels_B.argsort(stable=True)
    for fold in range(min(FOLDS, len(cohort)) if len(cohort) > 1 else 0):
        held_out_B = torch.zeros(len(cohort), dtype=torch.bool)
        held_out_B[order_B[fold::FOLDS]] = True
        yield cohort.select((~held_out_B).nonzero().squeeze(1)), cohort.select(held_out_B.nonzero().squeeze(1))


def _loss_on(cohort: Cohort, regression: SiteEffect) -> float:
    """Log-loss summed over the patients, in nats."""
    nothing_BY = np.ones((len(cohort), len(regression.intercept_Y)))
    logits_BY = torch.from_numpy(regression.logits(nothing_BY, cohort))
    return float(cross_entropy(logits_BY, cohort.labels_B, reduction="sum"))


def _most_probable(x_BX: Tensor, offset_BY: Tensor, labels_B: Tensor) -> Tensor:
    """(X, Y) with the highest posterior under a standard normal prior. The objective is strictly convex.

    Newton's method, each step shortened by how far it moves the logits: that converges from anywhere without a look
    at the objective (Sun & Tran-Dinh 2019, arXiv 1703.04599), whose last digits would end it before it is flat.
    """
    patients, columns = x_BX.shape
    if columns > patients:
        # The answer lies in the span of the patients' rows: no more unknowns are needed than there are patients.
        basis_XB, own_BB = torch.linalg.qr(x_BX.T)
        spanned_XY: Tensor = basis_XB @ _most_probable(own_BB.T, offset_BY, labels_B)
        return spanned_XY
    is_label_BY = torch.zeros_like(offset_BY).scatter(1, labels_B[:, None], 1.0)
    found_XY = torch.zeros(columns, offset_BY.shape[1], dtype=torch.float64)
    for _ in range(MOST_STEPS):
        share_BY = (offset_BY + x_BX @ found_XY).softmax(dim=1)
        gradient_XY = found_XY + x_BX.T @ (share_BY - is_label_BY)
        if float(gradient_XY.norm()) <= FLAT:
            break
        step_XY = _newton_step(x_BX, share_BY, gradient_XY)
        reach = 2.0 * float((x_BX @ step_XY).abs().amax())
        found_XY = found_XY - step_XY * (math.log1p(reach) / reach if reach > 0 else 1.0)
    return found_XY


def _newton_step(x_BX: Tensor, share_BY: Tensor, gradient_XY: Tensor) -> Tensor:
    """(X, Y): the gradient divided by the objective's curvature, by conjugate gradients."""

    def curvature(flat: np.ndarray) -> np.ndarray:
        direction_XY = torch.from_numpy(flat).reshape(gradient_XY.shape)
        moved_BY = share_BY * (x_BX @ direction_XY)
        bent_BY = moved_BY - share_BY * moved_BY.sum(dim=1, keepdim=True)
        product: np.ndarray = (direction_XY + x_BX.T @ bent_BY).flatten().numpy()
        return product

    size = gradient_XY.numel()
    operator = LinearOperator((size, size), matvec=curvature, dtype=np.float64)
    step, _ = cg(operator, gradient_XY.flatten().numpy(), rtol=CLOSE)
    return torch.from_numpy(step).reshape(gradient_XY.shape)
