from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from server.progress import quality, round_progress, troubles


def row(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    return {
        "round": 2,
        "stage": "generalize",
        "missing": [],
        "failed": {},
        "dropped": {},
        "loss": {"north": 0.5, "south": 0.7},
        "validation": {"pooled": {"auroc": 0.75, "accuracy": 0.5}},
    } | changes


def test_a_good_round_has_no_troubles() -> None:
    assert troubles(row()) == []


def test_each_site_that_went_wrong_is_a_line() -> None:
    assert troubles(row(missing=["a"], failed={"b": "error 7"}, dropped={"c": ["too long", "too large"]})) == [
        "Round 2: a: no answer before the deadline",
        "Round 2: b: error 7",
        "Round 2: c: too long; too large",
    ]


def test_what_is_no_round_is_told_too() -> None:
    assert troubles({"refused_checkpoint": "round-3: torn"}) == ["Passed over a broken checkpoint: round-3: torn"]
    assert troubles({"refused_nodes": {"7": "unsigned", "8": "late"}}) == [
        "Goes without 7: unsigned",
        "Goes without 8: late",
    ]


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, "training loss 0.600  validation AUROC 0.750  accuracy 0.500"),
        ({"validation": {"pooled": None}}, "training loss 0.600"),
        ({"validation": {"pooled": {"auroc": None, "accuracy": 0.5}}}, "training loss 0.600  accuracy 0.500"),
        ({"loss": {}, "validation": {"pooled": None}}, ""),
    ],
)
def test_quality_is_what_there_is(changes: dict[str, Any], shown: str) -> None:
    assert quality(row(**changes)) == shown


def test_the_bar_shows_rounds_and_troubles_as_they_are_in_80_columns() -> None:
    shown = StringIO()
    with round_progress(Console(file=shown, width=80), 3) as observe:
        observe({"refused_nodes": {"7": "[bold]not markup[/]"}})
        observe(row(missing=["north"]))
    text = shown.getvalue()
    assert "Goes without 7: [bold]not markup[/]" in text
    assert "Round 2: north: no answer before the deadline" in text
    assert "generalize" in text and " 2/3 " in text
    assert "validation AUROC 0.750" in " ".join(text.split())
