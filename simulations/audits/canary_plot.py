"""What canaries prove against what is claimed, run by run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from server.report.theme import INK, MUTED, SURFACE, Drawing, Look, axes_at
from simulations.audits.plots import house_style

WIDTH, HEIGHT, LEFT, BOTTOM, RIGHT, TOP = 9.6, 4.2, 0.7, 0.55, 3.0, 0.4
SPREAD = 1.025
"""Runs of one claim stand beside each other by this factor, not on top of each other."""

Points = Sequence[tuple[float, float]]


def bounds_drawing(name: str, alt: str, points: Mapping[str, Points], looks: Mapping[str, Look]) -> Drawing:
    """Points (claimed, proven) of each build; above the diagonal a claim is refuted."""
    claims = sorted({claimed for of_build in points.values() for claimed, _ in of_build})
    highest = max([*claims, *(proven for of_build in points.values() for _, proven in of_build)])
    with house_style():
        figure = Figure(figsize=(WIDTH, HEIGHT))
        axes = axes_at(figure, LEFT, BOTTOM, WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM - TOP)
        left, right = claims[0] / 1.5, claims[-1] * 1.5
        axes.set_xscale("log")
        axes.set_xlim(left, right)
        axes.set_ylim(-0.03 * highest, 1.08 * highest)
        axes.xaxis.set_major_locator(FixedLocator(claims))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.tick_params(length=0)
        axes.set_title("Proven against claimed", pad=8)
        axes.set_xlabel("claimed epsilon (the ledger's)")
        axes.set_ylabel("proven epsilon (lower bound, 99%)")
        line = [left * (right / left) ** (step / 100) for step in range(101)]
        axes.plot(line, line, color=MUTED, linewidth=1, linestyle=(0, (2, 2)), label="the claim: above it, refuted")
        for build, of_build in points.items():
            seen: dict[float, int] = {}
            for claimed, proven in of_build:
                place = seen[claimed] = seen.get(claimed, 0) + 1
                beside = SPREAD ** ((place // 2) * (-1) ** place)
                axes.plot(
                    min(max(claimed * beside, left), right),
                    proven,
                    looks[build].marker,
                    color=looks[build].color,
                    markersize=6,
                    markeredgecolor=SURFACE,
                    label=build if place == 1 and len(seen) == 1 else None,
                )
        axes.legend(
            loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=8.5, labelcolor=INK, borderaxespad=0
        )
    return Drawing(name, alt, figure)
