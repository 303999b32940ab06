"""Plots of measures against epsilon, infinity at the right end behind a gap, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter

from server.report.theme import GRID, INK, MUTED, SURFACE, Drawing, Look, axes_at
from simulations.audits.plots import house_style
from simulations.audits.roc import Estimate
from simulations.studies.privacy_arms import epsilon_text

WIDTH, LEFT, RIGHT, GAP, HEIGHT, TOP, BOTTOM = 9.6, 0.55, 0.1, 0.55, 2.5, 0.4, 0.48
LEGEND_ROW, LEGEND_COLUMNS = 0.2, 3
DODGE = 0.09
"""Between the points of two series at the same epsilon, which stand one unit apart."""
REFERENCE_LINES = ((0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))


@dataclass(frozen=True)
class Series:
    """A method's estimates by epsilon, None for infinity; an estimate without a value is not drawn."""

    label: str
    look: Look
    estimates: tuple[tuple[float | None, Estimate], ...]


@dataclass(frozen=True)
class Reference:
    """A value that has no epsilon, as a line across."""

    label: str
    value: float | None


@dataclass(frozen=True)
class EpsilonPanel:
    """One measure of all series, in the same order in every panel of a figure."""

    title: str
    series: tuple[Series, ...]
    references: tuple[Reference, ...] = ()


def epsilon_drawing(name: str, alt: str, epsilons: Sequence[float], panels: Sequence[EpsilonPanel]) -> Drawing:
    """The panels beside one another, over the same epsilons, with one legend below them."""
    entries = len(panels[0].series) + len(panels[0].references)
    legend = LEGEND_ROW * -(-entries // LEGEND_COLUMNS) + 0.06
    height = TOP + HEIGHT + BOTTOM + legend
    width = (WIDTH - LEFT - RIGHT - (len(panels) - 1) * GAP) / len(panels)
    with house_style():
        figure = Figure(figsize=(WIDTH, height))
        for place, panel in enumerate(panels):
            axes = axes_at(figure, LEFT + place * (width + GAP), legend + BOTTOM, width, HEIGHT)
            _draw_panel(axes, panel, (*sorted(epsilons), None))
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=((LEFT - 0.1) / WIDTH, 0.0),
            ncols=LEGEND_COLUMNS,
            frameon=False,
            labelcolor=INK,
            fontsize=8,
            borderaxespad=0.2,
            columnspacing=2.5,
        )
    return Drawing(name, alt, figure)


def _draw_panel(axes: Axes, panel: EpsilonPanel, epsilons: Sequence[float | None]) -> None:
    last = len(epsilons) - 1
    axes.set_title(panel.title, pad=8)
    axes.set_xlim(-0.5, last + 0.5)
    axes.xaxis.set_major_locator(FixedLocator(list(range(len(epsilons)))))
    axes.xaxis.set_ticklabels([epsilon_text(epsilon) for epsilon in epsilons])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.set_xlabel("epsilon")
    axes.grid(axis="x", visible=False)
    axes.tick_params(length=0)
    axes.axvline(last - 0.5, color=GRID, linewidth=1)
    middle = (len(panel.series) - 1) / 2
    for place, series in enumerate(panel.series):
        _draw_series(axes, series, epsilons, (place - middle) * DODGE)
    for reference, line in zip(panel.references, REFERENCE_LINES, strict=False):
        if reference.value is not None:
            axes.axhline(reference.value, color=MUTED, linewidth=1, linestyle=line, label=reference.label, zorder=1)
    axes.margins(y=0.1)


def _draw_series(axes: Axes, series: Series, epsilons: Sequence[float | None], shift: float) -> None:
    color, marker = series.look
    places = [epsilons.index(epsilon) + shift for epsilon, _ in series.estimates]
    line = [
        (place, one.value)
        for place, (epsilon, one) in zip(places, series.estimates, strict=True)
        if epsilon is not None and one.value is not None
    ]
    axes.plot(
        [place for place, _ in line],
        [value for _, value in line],
        marker,
        color=color,
        linestyle="-",
        linewidth=1.4,
        markersize=5,
        label=series.label,
    )
    for place, (epsilon, one) in zip(places, series.estimates, strict=True):
        if one.value is None:
            continue
        if epsilon is None and line:
            (before, value), dots = line[-1], (0, (1, 2))
            axes.plot((before, place), (value, one.value), color=color, linewidth=1.0, linestyle=dots)
        if one.low is not None and one.high is not None:
            ends = (one.low, one.high)
            axes.plot((place, place), ends, color=color, linewidth=1.3, solid_capstyle="butt", alpha=0.8)
        axes.plot(place, one.value, marker, color=color, markersize=5.5, markeredgecolor=SURFACE, zorder=3)
