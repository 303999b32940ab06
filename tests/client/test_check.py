import re
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.check import check_site
from client.cli import app
from client.coverage import Coverage, announced_combinations, coverage, observed_patients
from tests.client.conftest import SiteFolder


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, ["check", *map(str, arguments)])


def test_coverage_counts_combinations_and_modalities(site: SiteFolder) -> None:
    study = site.study()
    train = site.read().cohorts["train"]
    assert coverage(train, study) == Coverage(3, {0b111: 1, 0b101: 1, 0b001: 1}, {"history": 3, "labs": 1, "scan": 2})
    assert list(coverage(train, study).combinations) == [0b111, 0b101, 0b001]
    assert announced_combinations(train, 1) == {0b111: 1, 0b101: 1, 0b001: 1}
    assert announced_combinations(train, 2) == {}
    assert observed_patients(train, study, 2) == {"history": 3, "scan": 2}


def test_nobody_announces_the_lack_of_everything(site: SiteFolder) -> None:
    test = site.read().cohorts["test"]
    assert announced_combinations(test, 1) == {0b011: 1}
    assert coverage(test, site.study()).combinations == {0b011: 1, 0: 1}


def test_a_good_folder_has_coverage_and_no_problems(site: SiteFolder) -> None:
    result = check_site(site.path)
    assert (result.problems, result.site) == ((), "cleveland")
    assert {split: one.patients for split, one in result.coverage.items()} == {"train": 3, "validation": 1, "test": 2}


def test_the_study_is_named_or_inside_or_beside_the_folder(site: SiteFolder, tmp_path: Path) -> None:
    beside, elsewhere = tmp_path / "study.toml", tmp_path / "other" / "study.toml"
    elsewhere.parent.mkdir()
    (site / "study.toml").rename(beside)
    assert check_site(site.path).problems == ()
    beside.rename(elsewhere)
    assert check_site(site.path, elsewhere).problems == ()
    (problem,) = check_site(site.path).problems
    assert "study.toml" in problem.what


def test_the_documented_example_is_good(site: SiteFolder) -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"`([a-z./-]+)`[^\n]*:\n\n```(?:toml|csv)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 5
    for name, content in blocks:
        site.write(name.rpartition("/")[2], content)
    result = check_site(site.path)
    assert (result.problems, result.site) == ((), "my-hospital")
    assert result.coverage["train"].modalities == {"history": 3, "labs": 1, "scan": 2}


def test_problems_of_study_and_manifest_come_together(site: SiteFolder) -> None:
    site.edit("study.toml", '["absent", "present"]', '["absent"]')
    site.edit("site.toml", "patients = 6", "patients = 317")
    files = [problem.file for problem in check_site(site.path).problems]
    assert files == [str(site / "study.toml"), str(site / "site.toml")]


def test_test_labels_are_validated(site: SiteFolder) -> None:
    site.edit("patients.csv", "p4,present", "p4,garbage")
    assert [problem.place for problem in check_site(site.path).problems] == ["column disease, line 5"]


def test_the_command_prints_coverage(site: SiteFolder) -> None:
    before = sorted(site.path.parent.rglob("*"))
    result = run(site.path, "--min-cell", 1)
    assert result.exit_code == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines()]
    assert ["history + labs + scan", "1", "0", "0", "yes"] in rows
    assert ["history + labs", "0", "0", "1", "no"] in rows
    assert ["(none)", "0", "0", "1", "no"] in rows
    assert ["all patients", "3", "1", "2", ""] in rows
    assert ["labs", "1", "0", "1"] in rows
    assert sorted(site.path.parent.rglob("*")) == before


def test_the_command_says_which_scales_are_fitted(site: SiteFolder) -> None:
    fitted = "Fitted to training patients; declare these keys for patient-level privacy:"
    assert run(site.path).stdout.endswith(f"{fitted}\n  modality.scan.column.volume.range\n")
    site.edit("site.toml", 'unit = "ml"', 'unit = "ml"\nrange = [0, 100]')
    assert run(site.path).stdout.endswith("No scale is fitted to your patients, as patient-level privacy requires.\n")


def test_the_command_prints_one_problem_a_line_and_exits_with_2(site: SiteFolder) -> None:
    site.edit("site.toml", '"labs.csv"', '"no\\nsuch\\u001b[31m[file].csv"')
    site.edit("history.csv", "60,M", "87310,M")
    before = sorted(site.path.parent.rglob("*"))
    result = run(site.path)
    assert result.exit_code == 2
    assert result.stdout == ""
    history, labs = result.stderr.splitlines()
    assert history == (
        f"{site.path}/history.csv, column age, line 2: is outside the plausible range 20 to 100 years. "
        "Correct the value or its unit, or declare the spelling as missing."
    )
    assert "no\\nsuch\\x1b[31m[file].csv" in labs
    assert sorted(site.path.parent.rglob("*")) == before


@pytest.mark.parametrize("arguments", [["no-such-folder"], ["no-such-folder", "--study", "nowhere.toml"]])
def test_a_folder_that_does_not_exist(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert result.stderr.count("\n") == 2
