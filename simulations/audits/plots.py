"""How audits are drawn: ROC curves on logarithmic axes, where the few who are surely recognized can be seen.

Figures have the look of the report of a run: ``server.report.theme``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from server.report.theme import INK, MUTED, STYLE, SURFACE, Drawing, Look, axes_at
from simulations.audits.roc import Roc

WIDTH, LEFT, RIGHT, GAP, TOP, BOTTOM = 9.6, 0.75, 0.25, 0.6, 0.6, 0.6
MOST_PER_ROW, WIDEST = 3, 4.3
LONGEST_TITLE = 34  # signs of a line above the narrowest panel
PIXELS_PER_INCH = 150
MEMBERSHIP_AXES = ("false positives, share of non-members", "true positives, share of members")
LEGEND: Mapping[str, Any] = {
    "facecolor": SURFACE,
    "edgecolor": "none",
    "framealpha": 0.85,
    "fancybox": False,
    "fontsize": 7.5,
    "labelcolor": INK,
    "handlelength": 2.4,
}
LINES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), "-.")


@dataclass(frozen=True)
class RocCurve:
    """A curve and what it is of."""

    label: str
    roc: Roc
    look: Look


@dataclass(frozen=True)
class Limit:
    """(epsilon, delta)-DP: no curve about one patient is above e^epsilon * FPR + delta (Kairouz et al. 2015)."""

    epsilon: float
    delta: float


@dataclass(frozen=True)
class RocPanel:
    """The curves that are compared with one another."""

    title: str
    curves: tuple[RocCurve, ...]
    limit: Limit | None = None


def roc_drawing(
    name: str, alt: str, panels: Sequence[RocPanel], axes_titles: tuple[str, str] = MEMBERSHIP_AXES
) -> Drawing:
    """Panels of ROC curves with the same logarithmic axes, and the diagonal, which is guessing.

    A curve begins where ten non-members are false positives.
    """
    per_row = min(len(panels), MOST_PER_ROW)
    side = min(WIDEST, (WIDTH - LEFT - RIGHT - (per_row - 1) * GAP) / per_row)
    rows = -(-len(panels) // per_row)
    height = rows * (TOP + side + BOTTOM)
    with house_style():
        figure = Figure(figsize=(WIDTH, height))
        lowest = min(curve.roc.lowest_rate for panel in panels for curve in panel.curves)
        floor = 10.0 ** min(-1, math.floor(math.log10(lowest)))
        for place, panel in enumerate(panels):
            row, column = divmod(place, per_row)
            bottom = height - (row + 1) * (TOP + side + BOTTOM) + BOTTOM
            axes = axes_at(figure, LEFT + column * (side + GAP), bottom, side, side)
            axes.set_xlabel(axes_titles[0])
            axes.set_ylabel("" if column else axes_titles[1])
            _draw_panel(axes, panel, floor)
            if len(panels) == 1:
                axes.legend(loc="lower left", bbox_to_anchor=(1.05, 0.0), **LEGEND)
            else:
                axes.legend(loc="lower right", borderaxespad=0.2, **LEGEND)
    return Drawing(name, alt, figure)


def save(drawing: Drawing, stem: Path) -> tuple[Path, Path]:
    """Write the figure as PNG and SVG, on the light ground; the same figure gives the same bytes."""
    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    with house_style():
        drawing.figure.savefig(png, dpi=PIXELS_PER_INCH, facecolor=SURFACE, metadata={"Software": None})
        drawing.figure.savefig(svg, facecolor=SURFACE, metadata={"Date": None})
    return png, svg


@contextmanager
def house_style() -> Iterator[None]:
    """The style of the report of a run, and nothing of matplotlibrc."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def _draw_panel(axes: Axes, panel: RocPanel, floor: float) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(floor, 1.0)
    axes.set_ylim(floor, 1.08)
    axes.set_title(fill(panel.title, LONGEST_TITLE), pad=8)
    decades = [10.0**power for power in range(round(math.log10(floor)), 1)]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(decades))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(_percent))
    axes.tick_params(length=0, pad=5)
    diagonal = np.geomspace(floor, 1.0, 50)
    axes.plot(diagonal, diagonal, color=MUTED, linewidth=1, linestyle=(0, (2, 2)), label="guessing")
    if panel.limit is not None:
        highest = np.minimum(np.exp(panel.limit.epsilon) * diagonal + panel.limit.delta, 1.0)
        label = f"most that epsilon {panel.limit.epsilon:.3g} allows"
        axes.plot(diagonal, highest, color=INK, linewidth=1, linestyle=(0, (6, 2, 1, 2)), label=label)
    for curve, line in zip(panel.curves, LINES * len(panel.curves), strict=False):
        false_K, true_K = _shown(curve.roc, floor)
        label = f"{curve.label} (AUC {curve.roc.auc:.2f})"
        axes.plot(false_K, true_K, color=curve.look.color, linewidth=1.7, linestyle=line, label=label)


def _shown(roc: Roc, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """The part of the curve that enough non-members stand behind, as the steps that thresholds give."""
    lowest = max(roc.lowest_rate, floor)
    grid = np.geomspace(lowest, 1.0, 400) if lowest < 1.0 else np.ones(1)
    rates = [roc.true_positive_rate(min(float(rate), 1.0)) for rate in grid]
    return grid, np.array([np.nan if rate is None or rate < floor else rate for rate in rates])


def _percent(share: float, _place: int) -> str:
    return f"{100 * share:g}%"
