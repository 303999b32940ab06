from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from flexmoe_core.errors import InputError, Problem, RunFailed
from simulations.results import RESULTS, read_lines
from simulations.studies import commands, privacy_jobs
from simulations.studies.commands import parse_data, parse_epsilons, study
from simulations.studies.privacy_arms import arms_of
from simulations.studies.privacy_jobs import Job, JobResult
from tests.simulations.studies.results import made_up


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that were worked on, which is no work."""
    found = list[Job]()

    def work(job: Job) -> JobResult:
        found.append(job)
        return made_up(job)

    monkeypatch.setattr(privacy_jobs, "run_job", work)
    return found


def run(*arguments: str) -> Result:
    return CliRunner().invoke(study, ["privacy", *arguments], catch_exceptions=False)


def not_installed() -> Path:
    raise InputError([Problem("multiple-features", "", "is not installed", "Install it.")])


def test_quick_is_two_seeds_of_uci_heart_and_is_not_done_twice(done: list[Job], tmp_path: Path) -> None:
    for _ in range(2):
        assert run("--quick", "--out", str(tmp_path)).exit_code == 0
    jobs = [line.job for line in read_lines(tmp_path / RESULTS, JobResult)]
    assert jobs == done
    assert {(job.data.dataset, job.seed) for job in jobs} == {("uci-heart", 0), ("uci-heart", 1)}
    assert [job.arm for job in jobs if job.seed == 0] == arms_of([1.0, 8.0])
    assert "2 seeds, 12 rounds" in (tmp_path / "privacy.md").read_text()


def test_options_stand_above_what_is_quick(done: list[Job], tmp_path: Path) -> None:
    options = ["--seeds", "5", "--epsilons", "2", "--set", "federation.rounds=3"]
    assert run("--quick", "--out", str(tmp_path), *options).exit_code == 0
    assert {job.seed for job in done} == {5}
    assert [job.arm for job in done] == arms_of([2.0])
    assert "1 seed, 3 rounds" in (tmp_path / "privacy.md").read_text()


def test_digits_that_are_not_installed_are_left_out_and_said_to_be(
    done: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "packaged_tables", not_installed)
    shown = run("--out", str(tmp_path), "--seeds", "0").output
    assert "Left out" in shown
    assert "Install it." in shown
    assert {job.data.dataset for job in done} == {"uci-heart"}
    with pytest.raises(InputError, match="is not installed"):
        run("--out", str(tmp_path), "--data", "multiple-features")


def test_a_failing_job_leaves_a_report_of_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def work(job: Job) -> JobResult:
        if job.arm.family == "site":
            raise RunFailed("diverged")
        return made_up(job)

    monkeypatch.setattr(privacy_jobs, "run_job", work)
    with pytest.raises(RunFailed):
        run("--quick", "--out", str(tmp_path))
    text = (tmp_path / "privacy.md").read_text()
    assert "patient-level DP" in text
    assert "| Flex-MoE, site-level DP" not in text


def test_names_and_numbers_are_checked() -> None:
    assert parse_data("multiple-features, uci-heart") == ["uci-heart", "multiple-features"]
    assert parse_epsilons("8, 1,1") == [1.0, 8.0]
    for text in ("uci", "", "uci-heart,x"):
        with pytest.raises(InputError, match="--data"):
            parse_data(text)
    for text in ("", "x", "0", "-1", "nan", "inf"):
        with pytest.raises(InputError, match="no positive number"):
            parse_epsilons(text)


@pytest.mark.slow
def test_quick_runs_every_protection(tmp_path: Path) -> None:
    changes = ["--seeds", "0", "--epsilons", "8", "--set", "federation.rounds=2"]
    assert run("--quick", "--out", str(tmp_path), *changes).exit_code == 0
    found = {line.job.arm: line for line in read_lines(tmp_path / RESULTS, JobResult)}
    assert list(found) == arms_of([8.0])
    for arm, line in found.items():
        spent = line.epsilon
        assert (spent is None) == (arm.epsilon is None)
        assert spent is None or 0 < spent <= 8.0
