from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flexmoe_core.errors import InputError, RunFailed
from server.settings import settings_with
from simulations import benchmark as module
from simulations.benchmark import BenchmarkTerms, SeedResult, read_results, run_benchmark
from simulations.benchmark_commands import benchmark
from simulations.benchmark_options import parse_seeds
from simulations.benchmark_summary import summary_markdown
from simulations.results import RESULTS
from tests.simulations.test_comparison import compared

TERMS = BenchmarkTerms(protocol="all", validation=0.15, settings=settings_with([]))


class Runs:
    """Stands for the work of a seed, and counts it."""

    def __init__(self, fails: int | None = None) -> None:
        self.seeds, self.fails = list[int](), fails

    def __call__(self, out: Path, terms: BenchmarkTerms, seed: int, processes: int | None) -> SeedResult:
        self.seeds.append(seed)
        if seed == self.fails:
            raise RunFailed("nobody answered")
        settings = terms.settings.model_copy(update={"seed": seed})
        own = terms.model_copy(update={"settings": settings})
        return SeedResult(terms=own, seed=seed, table=compared(seed=seed), training_seconds=2, comparison_seconds=1)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    fake = Runs()
    monkeypatch.setattr(module, "run_seed", fake)
    return fake


def seeds_of(out: Path, *seeds: int) -> list[tuple[int, bool]]:
    return [(result.seed, is_new) for result, is_new in run_benchmark(out, TERMS, seeds)]


def test_seeds_that_are_there_are_not_run_again(runs: Runs, tmp_path: Path) -> None:
    assert seeds_of(tmp_path, 0, 1) == [(0, True), (1, True)]
    assert seeds_of(tmp_path, 1, 2) == [(1, False), (2, True)]
    assert runs.seeds == [0, 1, 2]
    assert [json.loads(line)["seed"] for line in (tmp_path / RESULTS).read_text().splitlines()] == [0, 1, 2]


def test_a_torn_last_line_is_run_again(runs: Runs, tmp_path: Path) -> None:
    seeds_of(tmp_path, 0, 1)
    file = tmp_path / RESULTS
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    assert seeds_of(tmp_path, 0, 1) == [(0, False), (1, True)]
    assert file.read_bytes() == whole


def test_a_failing_seed_keeps_those_before_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "run_seed", Runs(fails=1))
    with pytest.raises(RunFailed):
        seeds_of(tmp_path, 0, 1)
    assert [result.seed for result in read_results(tmp_path)] == [0]


def test_results_of_other_terms_are_refused(runs: Runs, tmp_path: Path) -> None:
    seeds_of(tmp_path, 0)
    for other in (
        TERMS.model_copy(update={"validation": 0.2}),
        TERMS.model_copy(update={"settings": settings_with(["federation.rounds=3"])}),
    ):
        with pytest.raises(InputError, match="another protocol, validation share or settings"):
            list(run_benchmark(tmp_path, other, [0]))


def test_a_line_that_is_no_result_is_named(runs: Runs, tmp_path: Path) -> None:
    seeds_of(tmp_path, 0)
    with (tmp_path / RESULTS).open("a") as file:
        file.write("{}\n")
    with pytest.raises(InputError, match="line 2: is no result of this benchmark"):
        read_results(tmp_path)


def test_the_summary_has_means_intervals_and_the_worst_hospital(runs: Runs, tmp_path: Path) -> None:
    results = [result for result, _ in run_benchmark(tmp_path, TERMS, [0, 1, 2])]
    text = summary_markdown(results)
    good = [result.table.result(None, "good").accuracy for result in results]
    assert f"{sum(one for one in good if one is not None) / 3:.3f} (" in text
    assert "overlap" in text
    assert "## large" in text
    worst = text.split("## Worst hospital")[1].split("##")[0]
    assert "| good   | " in worst
    assert "n/a" in text.split("## small")[1]


def test_the_summary_of_one_seed_has_no_interval_over_seeds(runs: Runs, tmp_path: Path) -> None:
    text = summary_markdown([result for result, _ in run_benchmark(tmp_path, TERMS, [0])])
    assert "[" not in text.split("## Differences over seeds")[1].split("##")[0]


def test_the_command_writes_the_summary(runs: Runs, tmp_path: Path) -> None:
    arguments = ["uci-heart", "--out", str(tmp_path), "--seeds", "0-1", "--protocol", "all", "--set", "seed=9"]
    result = CliRunner().invoke(benchmark, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "Seed 1" in result.output
    assert (tmp_path / "summary.md").read_text().startswith("# uci-heart, protocol all")


@pytest.mark.parametrize(("text", "seeds"), [("0-2", [0, 1, 2]), ("3", [3]), ("0,2-3, 2", [0, 2, 3])])
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "4-2", "0..3", "-1"])
def test_seeds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="neither a number nor a range"):
        parse_seeds(text)


@pytest.mark.slow
def test_a_seed_of_the_real_benchmark(tmp_path: Path) -> None:
    terms = BenchmarkTerms(protocol="flamby", validation=0.15, settings=settings_with(["federation.rounds=4"]))
    ((result, is_new),) = run_benchmark(tmp_path, terms, [1])
    assert is_new
    assert result.table.result(None, result.table.methods[0]).n == 254
    assert read_results(tmp_path) == [result]
