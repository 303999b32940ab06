from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from simulations.audits.output import write
from simulations.studies.privacy_arms import TITLES, arms_of
from simulations.studies.privacy_findings import findings_of
from simulations.studies.privacy_report import privacy_report
from simulations.studies.privacy_tables import tables_of
from tests.simulations.studies.results import made_up_results

ARMS = arms_of([1.0, 8.0])


def test_private_regression_is_in_every_table() -> None:
    (found,) = findings_of(made_up_results(), ARMS)
    tables = tables_of(found)
    assert len(tables) == 4
    for table in tables:
        assert [row[1] for row in table.rows if row[0] == TITLES["logistic"]][:2] == ["1", "8"]


def test_what_is_said_of_an_arm_is_its_own() -> None:
    (found,) = findings_of(made_up_results(), ARMS)
    texts = {table.name: {tuple(row[:2]): row[2:] for row in table.texts()} for table in tables_of(found)}
    assert texts["uci-heart-utility"][TITLES["patient"], "8"][0].startswith("0.905 [")
    assert texts["uci-heart-privacy"][TITLES["patient"], "8"][2:] == ["7.920", "0.001"]
    assert texts["uci-heart-privacy"][TITLES["none"], "\N{INFINITY}"][2:] == ["n/a", "n/a"]
    assert texts["uci-heart-cost"][TITLES["site"], "1"] == ["11.0", "12.0", "13.0"]
    assert (TITLES["majority"], "\N{INFINITY}") not in texts["uci-heart-privacy"]


def test_protection_is_compared_with_itself_unprotected_and_with_regression() -> None:
    (found,) = findings_of(made_up_results(), ARMS)
    price = next(table for table in tables_of(found) if table.name.endswith("price"))
    rows = {tuple(row[:3]): row[3] for row in price.texts()}
    assert rows[TITLES["patient"], "8", "unprotected"] == "-0.015 [-0.015, -0.015]"
    assert rows[TITLES["patient"], "8", "logistic regression"] == "0.010 [0.010, 0.010]"
    assert rows[TITLES["logistic"], "1", "unprotected"].startswith("-0.040")
    assert (TITLES["secure-aggregation"], "\N{INFINITY}", "unprotected") in rows
    assert (TITLES["none"], "\N{INFINITY}", "unprotected") not in rows


def test_the_report_is_files_of_every_kind_and_one_page_without_others(tmp_path: Path) -> None:
    write(tmp_path, privacy_report(findings_of(made_up_results(), ARMS)))
    found = {file.name for file in tmp_path.iterdir()}
    tables = {f"uci-heart-{name}.csv" for name in ("utility", "price", "privacy", "cost")}
    plots = {f"uci-heart-{name}-by-epsilon.{kind}" for name in ("utility", "attack") for kind in ("png", "svg")}
    assert found == tables | plots | {"privacy.md", "privacy.html"}
    page = (tmp_path / "privacy.html").read_text()
    assert page.count("<svg") == 2
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    assert "3 seeds" in page
    with (tmp_path / "uci-heart-utility.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == len(ARMS)
    assert float(rows[0]["AUROC low"]) < float(rows[0]["AUROC"]) < float(rows[0]["AUROC high"])


@pytest.mark.parametrize("family", ["patient", "majority", "logistic"])
def test_a_study_that_was_stopped_early_has_a_report_too(tmp_path: Path, family: str) -> None:
    some = [one for one in made_up_results(seeds=(0,)) if one.job.arm.family == family]
    write(tmp_path, privacy_report(findings_of(some, ARMS)))
    assert "1 seed" in (tmp_path / "privacy.md").read_text()
