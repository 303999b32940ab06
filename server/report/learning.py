"""Learning curves: training loss by hospital, validation metrics pooled and by hospital, round by round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flexmoe_core.curriculum import Stage
from server.report.finished_run import FinishedRun, Round
from server.report.theme import (
    ALERT,
    INK,
    MUTED,
    SHADE,
    SITE_COLORS,
    Drawing,
    Look,
    axes_at,
    inline,
    shortened,
)

WIDTH, LEFT, RIGHT, PANEL, GAP, TOP, BOTTOM = 9.6, 0.62, 1.75, 1.75, 0.5, 0.55, 0.5
LABEL_HEIGHT = 0.155  # inches between the middles of two direct labels
FEW_ROUNDS = 15
STAGE_NAME = 0.15  # of the width of a panel
POOLED = "all hospitals"
VALIDATION_PANELS = (("auroc", "Validation AUROC", "AUROC"), ("log_loss", "Validation log-loss", "nats per patient"))


@dataclass(frozen=True)
class Curve:
    """One hospital's values by round, or those of all of them."""

    name: str
    look: Look
    points: tuple[tuple[int, float], ...]

    @property
    def is_pooled(self) -> bool:
        """Whether this is the curve of all hospitals together."""
        return self.look == POOLED_LOOK


POOLED_LOOK = Look(INK, "D")


@dataclass(frozen=True)
class CurvePanel:
    """A titled set of curves."""

    title: str
    unit: str
    curves: tuple[Curve, ...]


def learning_panels(run: FinishedRun, looks: Mapping[str, Look]) -> tuple[CurvePanel, ...]:
    """The panels that have something to show, each without empty curves."""
    panels = [_loss_panel(run, looks)]
    panels += [_validation_panel(metric, title, unit, run, looks) for metric, title, unit in VALIDATION_PANELS]
    shown = [tuple(curve for curve in panel.curves if curve.points) for panel in panels]
    return tuple(replace(panel, curves=curves) for panel, curves in zip(panels, shown, strict=True) if curves)


@inline
def learning_curves(run: FinishedRun, panels: Sequence[CurvePanel], alt: str) -> Drawing:
    """The panels above one another, over the same rounds; the generalize stage is shaded."""
    height = TOP + len(panels) * PANEL + (len(panels) - 1) * GAP + BOTTOM
    figure = Figure(figsize=(WIDTH, height))
    last = max((row.round for row in run.history), default=1)
    for place, panel in enumerate(panels):
        bottom = height - TOP - (place + 1) * PANEL - place * GAP
        axes = axes_at(figure, LEFT, bottom, WIDTH - LEFT - RIGHT, PANEL)
        axes.set_xlim(-0.02 * last, last * 1.01 + 0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        axes.set_title(panel.title, pad=6 if place else 18)
        axes.set_ylabel(panel.unit)
        axes.tick_params(length=0)
        axes.margins(y=0.08)
        _draw_stages(axes, run.history, with_names=place == 0)
        for curve in panel.curves:
            _draw_curve(axes, curve, last, many=len(panel.curves) > len(SITE_COLORS) + 1)
        _label(axes, panel.curves)
        if place == len(panels) - 1:
            axes.set_xlabel("rounds of training")
    return Drawing("learning", alt, figure)


def _curve(name: str, look: Look, points: Iterable[tuple[int, float | None]]) -> Curve:
    return Curve(name, look, tuple((at, value) for at, value in points if value is not None))


def _loss_panel(run: FinishedRun, looks: Mapping[str, Look]) -> CurvePanel:
    losses = {site: [(row.round, row.loss.get(site)) for row in run.history] for site in run.sites}
    curves = [_curve(site, looks[site], points) for site, points in losses.items()]
    return CurvePanel("Training loss", "mean loss", tuple(curves))


def _validation_panel(metric: str, title: str, unit: str, run: FinishedRun, looks: Mapping[str, Look]) -> CurvePanel:
    scored = [row.validation for row in run.history]
    curves = [
        _curve(site, looks[site], ((one.round, one.sites.get(site, {}).get(metric)) for one in scored))
        for site in run.sites
    ]
    pooled = _curve(POOLED, POOLED_LOOK, ((one.round, (one.pooled or {}).get(metric)) for one in scored))
    return CurvePanel(title, unit, (*curves, pooled))


def _draw_stages(axes: Axes, history: Sequence[Round], *, with_names: bool) -> None:
    """Shade the generalize stage, and tick the rounds that were not aggregated."""
    left, right = axes.get_xlim()
    generalize = [row.round for row in history if row.stage is Stage.GENERALIZE]
    border = min(max(generalize) + 0.5, right) if generalize else left
    axes.axvspan(left, border, color=SHADE, linewidth=0, zorder=0)
    failed = [row.round for row in history if not row.aggregated]
    axes.plot(failed, [0.0] * len(failed), "|", color=ALERT, markersize=10, transform=axes.get_xaxis_transform())
    share = (border - left) / (right - left)
    for name, side, room in (("generalize", "right", share), ("specialize", "left", 1 - share)):
        if with_names and room > STAGE_NAME:
            axes.annotate(
                f"{name} stage",
                (border, 1.0),
                xycoords=axes.get_xaxis_transform(),
                xytext=(-5 if side == "right" else 5, 3),
                textcoords="offset points",
                ha=side,
                color=MUTED,
                fontsize=8,
            )


def _draw_curve(axes: Axes, curve: Curve, last: int, *, many: bool) -> None:
    rounds, values = zip(*curve.points, strict=True)
    axes.plot(
        rounds,
        values,
        color=curve.look.color,
        linewidth=2.4 if curve.is_pooled else 0.8 if many else 1.4,
        alpha=0.6 if many and not curve.is_pooled else None,
        marker=curve.look.marker if len(rounds) == 1 or (last <= FEW_ROUNDS and not many) else None,
        markersize=4,
        zorder=3 if curve.is_pooled else 2,
    )


def _label(axes: Axes, curves: Sequence[Curve]) -> None:
    """Name the curves at their right ends; of too many only the pooled one, the highest and the lowest."""
    by_end = sorted(curves, key=lambda curve: curve.points[-1][1])
    room = int(PANEL / LABEL_HEIGHT)
    if len(by_end) > min(room, len(SITE_COLORS) + 1):
        chosen = {by_end[0].name, by_end[-1].name, POOLED}
        by_end = [curve for curve in by_end if curve.name in chosen]
    low, high = axes.get_ylim()
    wanted = [(curve.points[-1][1] - low) / (high - low) for curve in by_end]
    for curve, y in zip(by_end, _apart(wanted, LABEL_HEIGHT / PANEL), strict=True):
        axes.annotate(
            shortened(curve.name, 20),
            xy=(curve.points[-1][0], curve.points[-1][1]),
            xytext=(1.02, y),
            textcoords="axes fraction",
            color=curve.look.color,
            fontweight="bold" if curve.is_pooled else None,
            va="center",
            arrowprops={"arrowstyle": "-", "color": curve.look.color, "linewidth": 0.5, "alpha": 0.6, "shrinkB": 2},
        )


def _apart(wanted: Sequence[float], step: float) -> list[float]:
    """Ascending heights moved up until they are ``step`` apart, then down again below the top."""
    placed: list[float] = []
    for height in wanted:
        placed.append(max(height, placed[-1] + step) if placed else height)
    ceiling = 1.0 + step / 2
    for place in reversed(range(len(placed))):
        placed[place] = min(placed[place], ceiling)
        ceiling = placed[place] - step
    return placed
