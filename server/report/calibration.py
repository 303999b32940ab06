"""Reliability diagrams of the pooled model: what it promises against what happens.

Shapes: G probability bins, R bins of the diagram.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flexmoe_core.scores import FloatArray, Scores, probability_centers
from server.report.theme import GRID, HEAT, MUTED, SURFACE, Drawing, axes_at, inline, shortened

WIDTH, SIDE, BARS = 9.6, 3.3, 0.75
RISK_BINS = 10
FEW = 10  # patients below which a point is drawn hollow
WILSON_Z = 1.959964


@dataclass(frozen=True)
class Reliability:
    """By bin with patients: their number, mean prediction and the share for which it came true."""

    count_R: FloatArray
    predicted_R: FloatArray
    observed_R: FloatArray


def confidence_reliability(scores: Scores) -> Reliability:
    """The predicted class's probability against the share of correct predictions: what ECE sums up."""
    count_R, confidence_R, correct_R = scores.reliability_R3[scores.reliability_R3[:, 0] > 0].T
    return Reliability(count_R, confidence_R / count_R, correct_R / count_R)


def risk_reliability(scores: Scores) -> Reliability:
    """The probability of class 1 of two (each patient's at the middle of its bin) against its frequency."""
    center_G = probability_centers()
    bin_G = np.minimum((center_G * RISK_BINS).astype(np.int64), RISK_BINS - 1)
    negative_G, positive_G = scores.histogram_Y2G[1]

    def total(weight_G: FloatArray) -> FloatArray:
        return np.bincount(bin_G, weights=weight_G, minlength=RISK_BINS).astype(np.float64)

    count_R = total((negative_G + positive_G).astype(np.float64))
    has_R = count_R > 0
    predicted_R = total((negative_G + positive_G) * center_G)[has_R] / count_R[has_R]
    return Reliability(count_R[has_R], predicted_R, total(positive_G.astype(np.float64))[has_R] / count_R[has_R])


@inline
def reliability_diagrams(scores: Scores, positive: str, alt: str) -> Drawing:
    """Predicted risk of ``positive`` (two classes only) and confidence, with the number of patients below."""
    figure = Figure(figsize=(WIDTH, SIDE + BARS + 1.05))
    sure = "probability of the predicted class"
    panels = [(confidence_reliability(scores), "How sure the model is", sure, "share correct")]
    if scores.classes == 2:
        name = shortened(positive)
        risk = f"predicted probability of '{name}'"
        panels.insert(0, (risk_reliability(scores), "Predicted risk", risk, f"share who are '{name}'"))
    for place, (reliability, title, x_label, y_label) in enumerate(panels):
        left = 0.62 + place * (WIDTH / 2)
        diagram = axes_at(figure, left, BARS + 0.72, WIDTH / 2 - 0.95, SIDE)
        counts = axes_at(figure, left, 0.5, WIDTH / 2 - 0.95, BARS)
        _draw_diagram(diagram, reliability, title, y_label)
        _draw_counts(counts, reliability, x_label)
    return Drawing("calibration", alt, figure)


def wilson_interval(count_R: FloatArray, share_R: FloatArray) -> tuple[FloatArray, FloatArray]:
    """95% score interval of a share (Wilson 1927)."""
    z2 = WILSON_Z**2
    middle_R = (share_R + z2 / (2 * count_R)) / (1 + z2 / count_R)
    spread_R = share_R * (1 - share_R) / count_R + z2 / (4 * count_R**2)
    half_R = WILSON_Z * np.sqrt(spread_R) / (1 + z2 / count_R)
    return middle_R - half_R, middle_R + half_R


def _draw_diagram(axes: Axes, reliability: Reliability, title: str, y_label: str) -> None:
    axes.set_title(title, pad=8)
    axes.set_ylabel(y_label)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.02, 1.02)
    axes.tick_params(length=0, labelbottom=False)
    axes.plot((0, 1), (0, 1), color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    low_R, high_R = wilson_interval(reliability.count_R, reliability.observed_R)
    axes.vlines(reliability.predicted_R, low_R, high_R, color=HEAT, linewidth=1.4)
    for count, x, y in zip(reliability.count_R, reliability.predicted_R, reliability.observed_R, strict=True):
        fill = SURFACE if count < FEW else HEAT
        axes.plot(x, y, "o", markersize=7, markerfacecolor=fill, markeredgecolor=HEAT, markeredgewidth=1.4)


def _compact(count: float) -> str:
    return f"{count:.0f}" if count < 1000 else f"{count / 1000:.1f}k" if count < 10_000 else f"{count / 1000:.0f}k"


def _draw_counts(axes: Axes, reliability: Reliability, x_label: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_xlabel(x_label)
    axes.set_ylabel("patients")
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.bar(reliability.predicted_R, reliability.count_R, width=0.035, color=HEAT, alpha=0.45)
    axes.set_ylim(0, 1.35 * float(reliability.count_R.max()))
    axes.spines["bottom"].set_color(GRID)
    for x, count in zip(reliability.predicted_R, reliability.count_R, strict=True):
        axes.text(float(x), float(count), _compact(count), ha="center", va="bottom", fontsize=8, color=MUTED)
