from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flexmoe_core.errors import InputError, RunFailed
from simulations import variant_benchmark as module
from simulations.benchmark_commands import benchmark
from simulations.benchmark_data import Digits, Synthetic
from simulations.comparison import Result
from simulations.datasets import multiple_features
from simulations.results import RESULTS, read_lines
from simulations.variant_benchmark import Job, JobResult, jobs_of, run_job, run_jobs
from simulations.variant_commands import parse_rates, parse_variants
from simulations.variant_summary import variants_markdown
from simulations.variants import BASELINES, FLEX_MOE, VARIANTS
from tests.simulations.datasets.digits import digit_tables
from tests.simulations.federations import tiny_settings

DATA = Synthetic(sites=2, modalities=3, patients_per_site=40, missing=0.4)
METHODS = (FLEX_MOE, "dense", "majority")


def made_up(job: Job, lead: float = 0.1) -> JobResult:
    """Flex-MoE is ahead by ``lead`` whatever the seed."""
    accuracy = 0.5 + 0.01 * job.seed + (lead if job.method == FLEX_MOE else 0.0)
    values = {"n_positive": 20, "macro_f1": None, "auprc": None, "brier": 0.2, "ece": 0.1}
    results = tuple(
        Result.model_validate(
            {"site": site, "method": job.method, "n": 40, "accuracy": accuracy - below, "auroc": auroc, **values}
        )
        for site, below, auroc in ((None, 0.0, 0.8), ("a", 0.0, 0.8), ("b", 0.2, None))
    )
    return JobResult(job=job, results=results, seconds=1.0)


class Jobs:
    """Stands for the work of a job, and counts it."""

    def __init__(self, fails: str | None = None) -> None:
        self.done, self.fails = list[Job](), fails

    def __call__(self, job: Job) -> JobResult:
        if job.method == self.fails:
            raise RunFailed("diverged")
        self.done.append(job)
        return made_up(job)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    fake = Jobs()
    monkeypatch.setattr(module, "run_job", fake)
    return fake


def some_jobs(*changes: str, seeds: tuple[int, ...] = (0, 1), methods: tuple[str, ...] = METHODS) -> list[Job]:
    return jobs_of([DATA], methods, seeds, tiny_settings(*changes))


def test_each_job_has_its_seed_and_the_settings_of_its_method() -> None:
    for job in some_jobs(methods=(*VARIANTS, *BASELINES)):
        if job.method in ("pooled-logistic", "majority"):
            assert job.settings is None
            continue
        assert job.settings is not None
        assert job.settings.seed == job.seed
        assert (job.settings.method.model.feed_forward == "dense") == job.method.startswith("dense")


def test_jobs_with_the_same_settings_are_not_run_again(jobs: Jobs, tmp_path: Path) -> None:
    assert [is_new for _, is_new in run_jobs(tmp_path, some_jobs())] == [True] * 6
    assert [is_new for _, is_new in run_jobs(tmp_path, some_jobs(seeds=(1, 2)))] == [False] * 3 + [True] * 3
    other = list(run_jobs(tmp_path, some_jobs("federation.rounds=3")))
    assert sorted(result.job.method for result, is_new in other if is_new) == ["dense", "dense", FLEX_MOE, FLEX_MOE]
    assert len(jobs.done) == len(read_lines(tmp_path / RESULTS, JobResult)) == 13


def test_a_line_that_is_no_result_is_named(tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_text("{}\n")
    with pytest.raises(InputError, match="line 1: is no result of this benchmark"):
        list(run_jobs(tmp_path, some_jobs()))


def test_the_summary_pairs_seeds_and_names_the_worst_hospital() -> None:
    text = variants_markdown([made_up(job) for job in some_jobs(seeds=(0, 1, 2))])
    assert "| federated Flex-MoE           | 40 |       20 | 0.610 (0.010) | 0.800 (0.000)" in text
    assert "0.410 (0.010)" in text
    assert "| dense, as many multiply-adds | +0.100 [+0.100, +0.100] | +0.000 [+0.000, +0.000]" in text
    assert "by data set" not in text


def test_a_method_that_lacks_seeds_is_compared_over_those_it_has() -> None:
    results = [made_up(job) for job in some_jobs(seeds=(0, 1, 2)) if (job.method, job.seed) != ("dense", 2)]
    assert "+0.100 [+0.100, +0.100] (2 seeds)" in variants_markdown(results)


def test_several_data_sets_have_a_column_each() -> None:
    more = DATA.model_copy(update={"missing": 0.7})
    text = variants_markdown([made_up(job) for job in jobs_of([DATA, more], METHODS, (0, 1), tiny_settings())])
    assert "| Method                       | synthetic, 40% missing | synthetic, 70% missing |" in text
    assert text.count("\n## ") == 5


@pytest.mark.parametrize("method", ["dense", "mean-fill", "pooled-logistic", "majority"])
def test_a_job_scores_every_test_patient_and_leaves_nothing(method: str) -> None:
    (job,) = some_jobs("federation.rounds=2", seeds=(0,), methods=(method,))
    found = run_job(job)
    together, *each = found.results
    assert [one.site for one in found.results] == [None, "site-1", "site-2"]
    assert together.n == sum(one.n for one in each) == sum(DATA.load(0).patients["split"] == "test")
    assert together.accuracy is not None
    assert JobResult.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("method", ["mean-fill", "pooled-logistic"])
def test_digits_are_a_data_set_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str) -> None:
    tables = digit_tables(tmp_path / "tables", per_digit=6)
    monkeypatch.setattr(multiple_features, "packaged_tables", lambda: tables)
    data = Digits(sites=2, missing=0.5, validation=0.0)
    (job,) = jobs_of([data], [method], [0], tiny_settings("federation.rounds=1"))
    together = run_job(job).results[0]
    assert together.n == sum(data.load(0).patients["split"] == "test") == 20
    assert together.accuracy is not None


ARGUMENTS = ["variants", "synthetic", "--sites", "2", "--seeds", "0-1", "--missing", "0.3"]


def test_the_command_writes_the_summary_and_goes_on(jobs: Jobs, tmp_path: Path) -> None:
    arguments = [*ARGUMENTS, "--variants", "dense,single-expert", "--out", str(tmp_path)]
    for _ in range(2):
        result = CliRunner().invoke(benchmark, arguments, catch_exceptions=False)
        assert result.exit_code == 0
    lines = [json.loads(line)["job"] for line in (tmp_path / RESULTS).read_text().splitlines()]
    assert len(jobs.done) == len(lines) == 10
    assert {line["method"] for line in lines} == {FLEX_MOE, "dense", "single-expert", "pooled-logistic", "majority"}
    assert "single expert" in (tmp_path / "summary.md").read_text()


def test_a_failing_variant_leaves_a_summary_of_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "run_job", Jobs(fails="learned"))
    with pytest.raises(RunFailed):
        CliRunner().invoke(benchmark, [*ARGUMENTS, "--out", str(tmp_path)], catch_exceptions=False)
    assert "single expert" in (tmp_path / "summary.md").read_text()


def test_variants_are_in_their_own_order_and_unknown_ones_refused() -> None:
    assert parse_variants("zero-fill, dense") == [FLEX_MOE, "dense", "zero-fill"]
    with pytest.raises(InputError, match="dense-wide") as caught:
        parse_variants("densewide,dense,foo")
    assert len(caught.value.problems) == 2


def test_rates() -> None:
    assert parse_rates("0, 0.3,0.3") == [0.0, 0.3]
    for text in ("", "x", "1", "-0.1", "nan"):
        with pytest.raises(InputError, match="no chance"):
            parse_rates(text)
