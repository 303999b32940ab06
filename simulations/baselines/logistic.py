"""Logistic regression on standardized features, its L2 penalty tuned by cross-validation. Deterministic.

Validation patients are for training here: cross-validation inside the training patients chooses the penalty.
Shapes: B patients, F features, Y classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from client.site_data import SiteData
from flexmoe_core.randomness import derived_seed
from flexmoe_core.scores import FloatArray, IntArray
from flexmoe_core.study import Study
from simulations.baselines.features import pooled_features
from simulations.baselines.predictions import (
    Predictions,
    labels_of,
    log_losses,
    predictions_for,
    prior_predictions,
)

PENALTIES = tuple(float(penalty) for penalty in 10 ** np.arange(-1.0, 3.5, 0.5))
FOLDS = 5
MOST_ITERATIONS = 5000


def pooled_logistic(study: Study, sites: Mapping[str, SiteData], seed: int) -> Predictions:
    """One regression for all hospitals, as if they could pool their patients."""
    splits = ("train", "validation")
    x_BF = np.vstack(list(pooled_features(sites, study, splits).values()))
    labels_B = np.concatenate([labels_of(data, splits) for data in sites.values()])
    test = pooled_features(sites, study, ("test",))
    every_BF = np.vstack(list(test.values()))
    predicted_BY = tuned_logistic(x_BF, labels_B, every_BF, len(study.label.classes), seed)
    parts = np.split(predicted_BY, np.cumsum([len(part) for part in test.values()])[:-1])
    return {name: predictions_for(data, part) for (name, data), part in zip(sites.items(), parts, strict=True)}


def tuned_logistic(x_BF: FloatArray, labels_B: IntArray, new_BF: FloatArray, classes: int, seed: int) -> FloatArray:
    """(B, Y) for the new patients, with the penalty that cross-validation on the others prefers."""
    return logistic(x_BF, labels_B, new_BF, classes, best_penalty(x_BF, labels_B, classes, seed))


def logistic(x_BF: FloatArray, labels_B: IntArray, new_BF: FloatArray, classes: int, penalty: float) -> FloatArray:
    """(B, Y) for the new patients; the prior where the labels are all of one class."""
    if len(np.unique(labels_B)) == 1 or not len(new_BF):
        return prior_predictions(labels_B, len(new_BF), classes)
    model = _pipeline(penalty).fit(x_BF, labels_B)
    predicted_BY = np.zeros((len(new_BF), classes))
    predicted_BY[:, model.classes_] = model.predict_proba(new_BF)
    return predicted_BY


def best_penalty(x_BF: FloatArray, labels_B: IntArray, classes: int, seed: int) -> float:
    """The strongest penalty whose cross-validated log-loss is within a standard error of the least.

    This rule (Breiman et al. 1984) leans to the simpler of models that are equal within noise. Where
    cross-validation is not possible: the strongest penalty.
    """
    folds = stratified_folds(labels_B, FOLDS, seed)
    if not folds:
        return max(PENALTIES)
    losses = {
        penalty: log_losses(held_out_logistic(x_BF, labels_B, classes, penalty, folds), labels_B)
        for penalty in PENALTIES
    }
    least_B = min(losses.values(), key=np.mean)
    bar = least_B.mean() + least_B.std(ddof=1) / len(least_B) ** 0.5
    return max(penalty for penalty, losses_B in losses.items() if losses_B.mean() <= bar)


def stratified_folds(labels_B: IntArray, most: int, seed: int) -> list[IntArray]:
    """Positions of the patients that each fold holds out, every class in each of them.

    As many folds as the smallest class has patients, ``most`` at most; none where that is below 2, or where
    there is but one class.
    """
    counts = np.unique(labels_B, return_counts=True)[1]
    folds = min(most, int(counts.min()))
    if folds < 2 or len(counts) == 1:
        return []
    splitter = StratifiedKFold(folds, shuffle=True, random_state=derived_seed(seed, "folds") % 2**32)
    return [held_out for _, held_out in splitter.split(np.zeros(len(labels_B)), labels_B)]


def held_out_logistic(
    x_BF: FloatArray, labels_B: IntArray, classes: int, penalty: float, folds: Sequence[IntArray]
) -> FloatArray:
    """(B, Y): each patient predicted by the regression on the other folds."""
    predicted_BY = np.zeros((len(labels_B), classes))
    for held_out in folds:
        others = np.setdiff1d(np.arange(len(labels_B)), held_out)
        predicted_BY[held_out] = logistic(x_BF[others], labels_B[others], x_BF[held_out], classes, penalty)
    return predicted_BY


def _pipeline(penalty: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=1.0 / penalty, max_iter=MOST_ITERATIONS))
