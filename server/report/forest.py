"""Dot-and-whisker plots: one row per hospital or combination, one panel per metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from server.report.estimates import Estimate
from server.report.row_labels import draw_labels, header_height
from server.report.tables import DASH
from server.report.theme import GRID, INK, MUTED, SURFACE, Drawing, Look, axes_at, inline, shortened

WIDTH, ROW, TITLE, AXIS, MARGIN = 9.6, 0.27, 0.45, 0.5, 0.17
POOLED_LOOK = Look(INK, "D")


@dataclass(frozen=True)
class ForestRow:
    """A label, the number of patients, one estimate per panel; with a ``mask`` the modalities are drawn instead."""

    label: str
    n: int
    look: Look
    estimates: tuple[Estimate, ...]
    mask: int | None = None


@dataclass(frozen=True)
class Panel:
    """A metric's title and range, the reference to compare with, and what it means."""

    title: str
    reference: float | None = None
    reference_label: str = ""
    limits: tuple[float, float] | None = None


@inline
def forest(
    name: str, alt: str, rows: Sequence[ForestRow], panels: Sequence[Panel], modalities: Sequence[str] = ()
) -> Drawing:
    """Estimates with their intervals; rows with a ``mask`` show which of ``modalities`` are observed."""
    header = max(TITLE, header_height(modalities)) if modalities else TITLE
    body = ROW * len(rows)
    figure = Figure(figsize=(WIDTH, header + body + AXIS))
    labels, numbers, masks = zip(
        *((row.label, f"{row.n:,}" if row.n else DASH, row.mask) for row in rows), strict=True
    )
    left = draw_labels(figure, AXIS, ROW, labels, numbers, masks, modalities)
    width = (WIDTH - left) / len(panels)
    for column, panel in enumerate(panels):
        axes = axes_at(figure, left + column * width + MARGIN, AXIS, width - 2 * MARGIN, body)
        _draw_panel(axes, panel, rows, column)
    return Drawing(name, alt, figure)


def _draw_panel(axes: Axes, panel: Panel, rows: Sequence[ForestRow], column: int) -> None:
    estimates = [row.estimates[column] for row in rows]
    low, high = panel.limits or _limits(estimates, panel.reference)
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_title(panel.title, pad=8)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
    if panel.reference is not None:
        axes.axvline(panel.reference, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        axes.set_xlabel(panel.reference_label)
    for place, (row, estimate) in enumerate(zip(rows, estimates, strict=True)):
        if place and rows[place - 1].look == POOLED_LOOK != row.look:
            axes.axhline(place - 0.5, color=GRID, linewidth=1)
        _draw_estimate(axes, place, row.look, estimate, low)


def _draw_estimate(axes: Axes, place: int, look: Look, estimate: Estimate, left: float) -> None:
    if estimate.value is None:
        span = axes.get_xlim()[1] - left
        reason = f"n/a: {shortened(estimate.reason, 40)}"
        axes.text(left + 0.04 * span, place, reason, va="center", color=MUTED, fontsize=8, style="italic")
        return
    if estimate.interval is not None:
        axes.plot(estimate.interval, (place, place), color=look.color, linewidth=1.8, solid_capstyle="butt")
    axes.plot(estimate.value, place, look.marker, color=look.color, markersize=6.5, markeredgecolor=SURFACE, zorder=3)


def _limits(estimates: Sequence[Estimate], reference: float | None) -> tuple[float, float]:
    """From the tenth below everything that is shown to a little beyond one."""
    shown = [one.value for one in estimates if one.value is not None]
    shown += [end for one in estimates for end in one.interval or ()]
    shown += [] if reference is None else [reference]
    low = float(np.floor(10 * min(shown, default=0.5)) / 10)
    return max(0.0, min(low, 0.9)) - 0.01, 1.02
