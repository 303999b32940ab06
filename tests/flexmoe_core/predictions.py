"""Predictions and labels drawn at random, better than chance, for the tests of scores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def random_predictions(
    generator: np.random.Generator, patients: int, classes: int = 2, confidence: float = 1.0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Softmax (B, Y) and labels (B,) drawn from it; at another confidence than 1 it is no longer calibrated."""
    logits_BY = generator.normal(size=(patients, classes)) * 1.5
    chances_BY = _softmax(logits_BY)
    labels_B = (generator.random((patients, 1)) > chances_BY.cumsum(axis=1)[:, :-1]).sum(axis=1)
    return _softmax(logits_BY * confidence), labels_B.astype(np.int64)


def _softmax(logits_BY: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    weights_BY = np.exp(logits_BY)
    return np.asarray(weights_BY / weights_BY.sum(axis=1, keepdims=True))
