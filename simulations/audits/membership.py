"""Was this patient in the training data? Attacks on what a released model says of them.

Shapes: K federations, O = K - 1 of them, B patients, N = K*B scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from flexmoe_core.scores import FloatArray, IntArray
from simulations.audits.roc import BoolArray

FEWEST_SHADOWS = 2
"""Federations with, and federations without a patient, that a likelihood ratio about them needs."""

Attack = Callable[[int, FloatArray, BoolArray], FloatArray]
"""The target's place, logits (K, B) and membership (K, B) to scores (B,), NaN where nothing can be said. An attack
does not look at the target's own row of membership."""


@dataclass(frozen=True, eq=False)
class AttackScores:
    """Scores of all patients against all federations, each of which was attacked with the help of the others.

    Patients about whom an attack can say nothing are left out. ``patient_N`` is the patient's place.
    """

    scores_N: FloatArray
    is_member_N: BoolArray
    patient_N: IntArray

    def only(self, chosen_B: BoolArray) -> AttackScores:
        """Those of some patients."""
        chosen_N = chosen_B[self.patient_N]
        return AttackScores(self.scores_N[chosen_N], self.is_member_N[chosen_N], self.patient_N[chosen_N])


def loss_threshold(target: int, logits_KB: FloatArray, is_member_KB: BoolArray) -> FloatArray:
    """A low loss, below any threshold, says member (Yeom et al. 2018); needs no shadow."""
    return np.asarray(logits_KB[target])


def likelihood_ratio_offline(target: int, logits_KB: FloatArray, is_member_KB: BoolArray) -> FloatArray:
    """How unusual the logit is among models that never saw the patient (LiRA, Carlini et al. 2022, offline)."""
    mean_B, deviation = _normal(_others(target, logits_KB), ~_others(target, is_member_KB))
    scores_B: FloatArray = (logits_KB[target] - mean_B) / deviation
    return scores_B


def likelihood_ratio(target: int, logits_KB: FloatArray, is_member_KB: BoolArray) -> FloatArray:
    """Log-likelihood of the logit among models with the patient, minus that without (LiRA, online).

    What membership does to a patient's logit is the difference of two means of few shadows. It is shrunk to the mean
    difference of all patients, by how much of its variance is noise (James and Stein 1961).
    """
    logits_OB, member_OB = _others(target, logits_KB), _others(target, is_member_KB)
    (with_B, deviation_with), (without_B, deviation_without) = (
        _normal(logits_OB, side_OB) for side_OB in (member_OB, ~member_OB)
    )
    share_B = member_OB.mean(axis=0)
    with np.errstate(divide="ignore"):
        noise_B = (deviation_with**2 / share_B + deviation_without**2 / (1 - share_B)) / len(member_OB)
    shift_B = _shrunk(with_B - without_B, noise_B)
    without_B = logits_OB.mean(axis=0) - share_B * shift_B
    own_B = logits_KB[target]
    likely_with_B = _log_density(own_B, without_B + shift_B, deviation_with)
    return likely_with_B - _log_density(own_B, without_B, deviation_without)


ATTACKS: Mapping[str, Attack] = {
    "loss": loss_threshold,
    "LiRA offline": likelihood_ratio_offline,
    "LiRA online": likelihood_ratio,
}
"""By name, weak ones first."""


def attack_all(attack: Attack, logits_KB: FloatArray, is_member_KB: BoolArray) -> AttackScores:
    """Every federation as the target once, all others as its shadows."""
    scores_KB = np.stack([attack(target, logits_KB, is_member_KB) for target in range(len(logits_KB))])
    patient_KB = np.broadcast_to(np.arange(scores_KB.shape[1], dtype=np.int64), scores_KB.shape)
    said_KB = ~np.isnan(scores_KB)
    return AttackScores(scores_KB[said_KB], is_member_KB[said_KB], patient_KB[said_KB])


def _others(target: int, values_KB: np.ndarray) -> np.ndarray:
    return np.delete(values_KB, target, axis=0)


def _normal(logits_KB: FloatArray, chosen_KB: BoolArray) -> tuple[FloatArray, float]:
    """Of the chosen federations: each patient's mean logit (NaN of too few), and one deviation of all.

    A deviation per patient would need more than some dozen shadows (Carlini et al., section VI-B).
    """
    count_B: IntArray = chosen_KB.sum(axis=0).astype(np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_B = np.where(count_B >= FEWEST_SHADOWS, (logits_KB * chosen_KB).sum(axis=0) / count_B, np.nan)
    squared = np.nansum(chosen_KB * (logits_KB - mean_B) ** 2)
    free = float(np.where(count_B >= FEWEST_SHADOWS, count_B - 1, 0).sum())
    return mean_B, float(np.sqrt(max(squared / max(free, 1.0), 1e-12)))


def _shrunk(values_B: FloatArray, noise_B: FloatArray) -> FloatArray:
    """Towards the mean of all; NaN where there is no value."""
    known_B = ~np.isnan(values_B)
    if not known_B.any():
        return values_B
    mean, spread = float(values_B[known_B].mean()), float(values_B[known_B].var())
    kept = max(0.0, 1.0 - float(noise_B[known_B].mean()) / max(spread, 1e-12))
    return mean + kept * (values_B - mean)


def _log_density(logits_B: FloatArray, mean_B: FloatArray, deviation: float) -> FloatArray:
    """Of a normal distribution, but for a constant."""
    density_B: FloatArray = -(((logits_B - mean_B) / deviation) ** 2) / 2 - np.log(deviation)
    return density_B
