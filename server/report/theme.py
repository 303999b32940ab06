"""How figures look: one palette for page and plots, and figures as SVG that follow the page's light or dark theme.

Figures are drawn in the light theme's colors; each color of the palette then becomes a CSS variable of the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple, ParamSpec
from xml.etree import ElementTree as ET

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

P = ParamSpec("P")

INK, MUTED, GRID, SURFACE, SHADE = "#1c2733", "#5b6876", "#e1e6ec", "#fefefe", "#f0f4f8"
HEAT, ALERT = "#0a5a9c", "#b2400f"
# Okabe and Ito (2008) without black and yellow, the light ones darkened for a white page; two of Tol's muted scheme.
SITE_COLORS = ("#0072b2", "#d55e00", "#008f68", "#b8578f", "#a87400", "#3b9bd0", "#7a1f52", "#66660a")
SITE_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    SURFACE: "--surface",
    SHADE: "--shade",
    HEAT: "--heat",
    ALERT: "--alert",
    **{color: f"--site-{place}" for place, color in enumerate(SITE_COLORS, start=1)},
}
FONT_SIZE = 9.0
STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "flexmoe",
    "text.parse_math": False,
    "font.size": FONT_SIZE,
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": FONT_SIZE,
    "axes.titlesize": FONT_SIZE + 1,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.solid_capstyle": "round",
}


class Look(NamedTuple):
    """The color and marker of a hospital in every figure."""

    color: str
    marker: str


class Drawing(NamedTuple):
    """A finished figure; ``name`` is unique on the page, ``alt`` says in words what there is to see."""

    name: str
    alt: str
    figure: Figure


def site_looks(sites: Sequence[str]) -> dict[str, Look]:
    """A look for every hospital; more hospitals than can be told apart share a muted one."""
    if len(sites) > len(SITE_COLORS):
        return dict.fromkeys(sites, Look(MUTED, "o"))
    return {site: Look(*look) for site, look in zip(sites, zip(SITE_COLORS, SITE_MARKERS, strict=True), strict=False)}


def inline(draw: Callable[P, Drawing]) -> Callable[P, Markup]:
    """Turn a function that draws into one that gives inline SVG, whatever matplotlibrc says."""

    @wraps(draw)
    def draw_inline(*args: P.args, **kwargs: P.kwargs) -> Markup:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(STYLE)
            drawing = draw(*args, **kwargs)
            svg = io.BytesIO()
            drawing.figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        return _as_html(svg.getvalue(), drawing)

    return draw_inline


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def shortened(text: str, most: int = 28) -> str:
    """A name that fits beside a plot; what cannot be printed, and XML cannot hold, is blank."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= most else text[: most - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def _as_html(svg: bytes, drawing: Drawing) -> Markup:
    """SVG 2 without namespaces, style sheets, metadata or ids of other figures, its colors the page's variables."""
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        for child in [one for one in parent if one.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: _attribute(key.rpartition("}")[2], value, drawing.name)
            for key, value in element.attrib.items()
        }
    width, height = (f"{72 * side:.0f}" for side in drawing.figure.get_size_inches())
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "width": width,
        "height": height,
        "role": "img",
        "aria-label": drawing.alt,
    }
    return Markup(ET.tostring(root, encoding="unicode"))


def _attribute(key: str, value: str, figure: str) -> str:
    if key == "id":
        return f"{figure}-{value}"
    if key == "href":
        return value.replace("#", f"#{figure}-", 1)
    if key == "clip-path":
        return value.replace("url(#", f"url(#{figure}-", 1)
    if key == "style":
        value = re.sub(r"font: (?:(\w+) )?([\d.]+px)[^;]*", _font, value)
        return re.sub(r"#[0-9a-f]{6}", lambda color: _themed(color[0]), value)
    return value


def _font(match: re.Match[str]) -> str:
    weight = f"; font-weight: {match[1]}" if match[1] else ""
    return f"font-size: {match[2]}{weight}"


def _themed(color: str) -> str:
    return f"var({VARIABLES[color]})" if color in VARIABLES else color
