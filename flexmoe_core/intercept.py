"""A site's own intercept: what its patients' prevalence adds to the shared model's logits.

The random intercept of a mixed model, fitted to the site's training patients after the shared part is fixed. Within
a site of two classes it changes no ranking; without labels it is zero, and the shared model speaks unchanged.

Shapes: B patients, Y classes.
"""

from __future__ import annotations

import numpy as np

STEPS = 100
TOLERANCE = 1e-10
LEAST_SPREAD = 1e-6


def fit_intercept(probabilities_BY: np.ndarray, labels_B: np.ndarray, spread: float) -> np.ndarray:
    """The most probable intercept (Y,) of these patients under a normal prior of that spread (0: none), by Newton.

    It sums to zero; it is zero for no patients.
    """
    classes = probabilities_BY.shape[1]
    intercept_Y = np.zeros(classes)
    if spread < LEAST_SPREAD or len(labels_B) == 0:
        return intercept_Y
    counts_Y = np.bincount(labels_B, minlength=classes)
    precision = spread**-2.0
    for _ in range(STEPS):
        shifted_BY = shift(probabilities_BY, intercept_Y)
        gradient_Y = shifted_BY.sum(axis=0) - counts_Y + precision * intercept_Y
        curvature_YY = np.diag(shifted_BY.sum(axis=0) + precision) - shifted_BY.T @ shifted_BY
        step_Y = np.linalg.solve(curvature_YY, gradient_Y)
        intercept_Y = intercept_Y - step_Y / max(1.0, float(np.abs(step_Y).max()))
        if np.abs(step_Y).max() < TOLERANCE:
            break
    return intercept_Y


def shift(probabilities_BY: np.ndarray, intercept_Y: np.ndarray) -> np.ndarray:
    """Probabilities (B, Y) after the intercept joined the logits."""
    logits_BY = np.log(np.maximum(probabilities_BY, np.finfo(np.float64).tiny)) + intercept_Y
    weight_BY = np.exp(logits_BY - logits_BY.max(axis=1, keepdims=True))
    shifted_BY: np.ndarray = weight_BY / weight_BY.sum(axis=1, keepdims=True)
    return shifted_BY
