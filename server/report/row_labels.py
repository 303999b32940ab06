"""What stands left of the rows of a figure: names or combinations as rows of dots, and numbers of patients.

All lengths are inches.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from server.report.theme import GRID, INK, MUTED, axes_at, shortened

LETTER = 0.071  # a letter's width, roughly
PITCH, MOST_DOTS = 0.24, 3.4
SLACK = 0.3
LABEL_LENGTH = 40
NUMBERS = 0.55
HEADER_LENGTH, HEADER_ANGLE = 18, 40
RISE = LETTER * 0.66


def header_height(names: Sequence[str]) -> float:
    """What slanted headers of these names need above the first row."""
    return 0.34 + RISE * max((len(shortened(name, HEADER_LENGTH)) for name in names), default=0)


def draw_labels(
    figure: Figure,
    bottom: float,
    row_height: float,
    labels: Sequence[str],
    numbers: Sequence[str],
    masks: Sequence[int | None],
    modalities: Sequence[str],
) -> float:
    """Label the rows from the top, with ``modalities`` as dots where a row has a mask; give the width taken."""
    named = [label for label, mask in zip(labels, masks, strict=True) if mask is None]
    pitch = min(PITCH, MOST_DOTS / max(len(modalities), 1))
    dots = pitch * len(modalities) + SLACK if len(named) < len(labels) else 0.0
    width = max([1.0, dots, *(LETTER * len(shortened(label, LABEL_LENGTH)) + 0.1 for label in named)])
    axes = axes_at(figure, 0, bottom, width + NUMBERS, row_height * len(labels))
    axes.set_xlim(0, width + NUMBERS)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.axis("off")
    axes.text(width + NUMBERS - 0.1, -0.75, "n", ha="right", va="center", color=MUTED)
    for row, (label, number, mask) in enumerate(zip(labels, numbers, masks, strict=True)):
        axes.text(width + NUMBERS - 0.1, row, number, ha="right", va="center", color=MUTED)
        if mask is None:
            axes.text(0, row, shortened(label, LABEL_LENGTH), ha="left", va="center")
        else:
            _draw_dots(axes, row, mask, len(modalities), pitch)
    if dots:
        draw_headers(axes, [pitch * (m + 0.5) for m in range(len(modalities))], modalities)
    return width + NUMBERS


def draw_headers(axes: Axes, places: Sequence[float], names: Sequence[str]) -> None:
    """Slanted names above the columns of axes whose first row is at 0."""
    for x, name in zip(places, names, strict=True):
        text = shortened(name, HEADER_LENGTH)
        axes.text(x, -0.68, text, rotation=HEADER_ANGLE, rotation_mode="anchor", va="center", color=MUTED)


def _draw_dots(axes: Axes, row: int, mask: int, modalities: int, pitch: float) -> None:
    """Filled where a modality is observed."""
    observed = [pitch * (m + 0.5) for m in range(modalities) if mask >> m & 1]
    lacking = [pitch * (m + 0.5) for m in range(modalities) if not mask >> m & 1]
    size = 27 * pitch
    axes.plot(lacking, [row] * len(lacking), "o", color=GRID, markersize=size, markeredgewidth=0)
    axes.plot(observed, [row] * len(observed), "o-", color=INK, markersize=size, markeredgewidth=0, linewidth=1.2)
