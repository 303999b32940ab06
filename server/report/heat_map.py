"""Heat maps whose cells fade into the page, in light and in dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from server.report.row_labels import draw_headers, draw_labels, header_height
from server.report.theme import ALERT, GRID, HEAT, INK, MUTED, SURFACE, Drawing, axes_at, inline

WIDTH, ROW, BOTTOM, RIGHT = 9.6, 0.3, 0.08, 0.7
LARGEST_CELL, LEAST_CELL_WITH_TEXT = 0.68, 0.28


@dataclass(frozen=True)
class HeatRow:
    """A row of a heat map: its label (or modalities), a number beside it, and per column a share or a word.

    ``marked`` is the column to frame.
    """

    label: str
    n: str
    cells: tuple[float | str, ...]
    mask: int | None = None
    marked: int | None = None


@inline
def heat_map(
    name: str, alt: str, rows: Sequence[HeatRow], columns: Sequence[str], modalities: Sequence[str] = ()
) -> Drawing:
    """Shares between 0 and 1 as depth of color, written as percentages where there is room."""
    body = ROW * len(rows)
    figure = Figure(figsize=(WIDTH, max(header_height(columns), header_height(modalities)) + body + BOTTOM))
    labels, numbers, masks = [row.label for row in rows], [row.n for row in rows], [row.mask for row in rows]
    left = draw_labels(figure, BOTTOM, ROW, labels, numbers, masks, modalities)
    width = min(LARGEST_CELL, (WIDTH - left - RIGHT) / len(columns))
    axes = axes_at(figure, left, BOTTOM, width * len(columns), body)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.axis("off")
    draw_headers(axes, range(len(columns)), columns)
    for place, row in enumerate(rows):
        for column, value in enumerate(row.cells):
            _draw_cell(axes, column, place, value, has_room=width >= LEAST_CELL_WITH_TEXT)
        if row.marked is not None:
            corner = (row.marked - 0.46, place - 0.44)
            axes.add_patch(Rectangle(corner, 0.92, 0.88, fill=False, edgecolor=ALERT, linewidth=1.8))
    return Drawing(name, alt, figure)


def _draw_cell(axes: Axes, column: int, row: int, value: float | str, *, has_room: bool) -> None:
    corner, size = (column - 0.46, row - 0.44), (0.92, 0.88)
    axes.add_patch(Rectangle(corner, *size, facecolor="none", edgecolor=GRID, linewidth=0.6))
    if isinstance(value, str):
        if has_room:
            axes.text(column, row, value, ha="center", va="center", color=MUTED, fontsize=8)
        return
    axes.add_patch(Rectangle(corner, *size, facecolor=(HEAT, min(max(value, 0.0), 1.0)), linewidth=0))
    if has_room:
        ink = SURFACE if value > 0.55 else INK
        axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=ink, fontsize=8.5)
