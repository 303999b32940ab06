from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from server.report.theme import SITE_COLORS, Look
from simulations.audits.output import markdown_of, page_of, show_and_write
from simulations.audits.plots import Limit, RocCurve, RocPanel, roc_drawing
from simulations.audits.report import AuditFigure, AuditReport, AuditTable, Finding, text_of
from simulations.audits.roc import Estimate, Roc, roc_of

LONG = "a combination with a name that is longer than any column, [not markup]"


def curve(others: int = 200) -> Roc:
    generator = np.random.default_rng(0)
    scores = np.concatenate([generator.normal(1, 1, 200), generator.normal(0, 1, others)])
    return roc_of(scores, np.arange(200 + others) < 200)


def report() -> AuditReport:
    rows = (
        (
            "no protection",
            "LiRA online",
            7344,
            Estimate(0.58, 0.57, 0.589),
            Estimate(0.157, 0.1, 0.2),
            Estimate(None),
        ),
        (LONG, "loss", 12, None, Estimate(None), None),
    )
    table = AuditTable("attacks", "Attacks", ("whom", "attack", "n", "AUC", "TPR 10%", "TPR 1%"), rows, 2, "A note.")
    look = Look(SITE_COLORS[0], "o")
    panels = [
        RocPanel("one", (RocCurve("loss", curve(), look),), Limit(2.0, 1e-5)),
        RocPanel("two", (RocCurve("x", curve(), look),)),
    ]
    figure = AuditFigure("Curves", "What to see.", roc_drawing("roc", "two panels", panels))
    return AuditReport("An <audit>", "What was done.", (Finding("AUC", "0.58"),), (table,), (figure,), ("Not that.",))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Estimate(0.5, 0.25, 0.75), "0.500 [0.250, 0.750]"),
        (Estimate(0.5), "0.500"),
        (Estimate(None), "n/a"),
        (None, "n/a"),
        (7344, "7,344"),
        (0.12345, "0.123"),
        ("words", "words"),
    ],
)
def test_values_as_they_are_read(value: object, text: str) -> None:
    assert text_of(value) == text  # type: ignore[arg-type]


def test_files_and_terminal(tmp_path: Path) -> None:
    console = Console(width=80, record=True, file=(tmp_path / "terminal").open("w"))
    show_and_write(console, tmp_path / "out", report())
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"attacks.csv", "roc.png", "roc.svg", report().summary, report().page}
    lines = console.export_text().splitlines()
    assert LONG in lines, "headings may be longer than the columns"
    numbers = [line for line in lines if line.startswith(("attack", "LiRA", "loss"))]
    assert len(numbers) == 3
    assert max(map(len, numbers)) <= 80
    assert "0.580 [0.570, 0.589]" in numbers[1]
    assert "0.157" in numbers[1] and "0.100" not in numbers[1]


def test_csv_has_every_digit_and_empty_cells_for_what_is_not_available(tmp_path: Path) -> None:
    show_and_write(Console(quiet=True), tmp_path, report())
    with (tmp_path / "attacks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["AUC"], rows[0]["AUC low"], rows[0]["AUC high"], rows[0]["n"]) == (
        "0.58",
        "0.57",
        "0.589",
        "7344",
    )
    assert rows[1]["AUC"] == rows[1]["TPR 10%"] == rows[1]["TPR 1%"] == ""


def test_the_page_needs_nothing_else_and_escapes_names() -> None:
    page = page_of(report())
    assert "An &lt;audit&gt;" in page
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "url(" not in page.replace("url(#", "")
    assert page.count("<svg") == 1
    assert "var(--site-1)" in page, "curves follow the page's theme"
    assert "What this does not show" in markdown_of(report())


def test_pictures_are_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        show_and_write(Console(quiet=True), tmp_path / name, report())
    for file in ("roc.png", "roc.svg", report().page):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_curve_begins_where_ten_non_members_are_false_positives() -> None:
    look = Look(SITE_COLORS[0], "o")
    drawing = roc_drawing("roc", "alt", [RocPanel("one", (RocCurve("few", curve(others=50), look),))])
    (axes,) = drawing.figure.axes
    drawn = next(line for line in axes.lines if str(line.get_label()).startswith("few"))
    assert np.min(np.asarray(drawn.get_xdata())) == pytest.approx(0.2)
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert any(line.get_label() == "guessing" for line in axes.lines)
