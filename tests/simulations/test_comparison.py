from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from flexmoe_core.errors import CheckpointError
from flexmoe_core.score_metrics import SUMMARY_METRICS
from flexmoe_core.study import load_study
from server.run_store import RunStore
from simulations import comparison as module
from simulations.baselines import local_only as local_module
from simulations.baselines.predictions import Predictions, SitePredictions
from simulations.comparison import FEDERATED, METHODS, POOLED_LOGISTIC, ComparisonTable, compare, compare_predictions
from simulations.runs import simulate
from simulations.tables import print_comparison
from tests.flexmoe_core.predictions import random_predictions
from tests.simulations.federations import SITES, tiny_settings, tiny_study

SIZES = {"large": 120, "small": 15}


def two_methods(classes: int = 2, seed: int = 0) -> dict[str, Predictions]:
    """A calibrated method and one that guesses, for the same patients of two hospitals."""
    generator = np.random.default_rng(seed)
    good, guess = {}, {}
    for site, size in SIZES.items():
        p_BY, labels_B = random_predictions(generator, size, classes)
        ids = tuple(f"{site}-{number}" for number in range(size))
        good[site] = SitePredictions(ids, labels_B, p_BY)
        guess[site] = SitePredictions(ids, labels_B, np.full_like(p_BY, 1 / classes))
    return {"good": good, "guess": guess}


def renamed(table: ComparisonTable) -> ComparisonTable:
    """The same table with the names of the real methods."""
    names = dict(zip(table.methods, (FEDERATED, POOLED_LOGISTIC), strict=True))
    results = [one.model_copy(update={"method": names[one.method]}) for one in table.results]
    differences = [one.model_copy(update={"method": names[one.method]}) for one in table.differences]
    return table.model_copy(update={"results": tuple(results), "differences": tuple(differences)})


def compared(classes: int = 2, seed: int = 0) -> ComparisonTable:
    return compare_predictions(two_methods(classes, seed), classes, {"large": "network"}, seed=0, resamples=200)


@pytest.mark.parametrize("classes", [2, 3])
def test_differences_are_those_of_the_metrics(classes: int) -> None:
    table = compared(classes)
    good, guess = table.result(None, "good"), table.result(None, "guess")
    assert good.n == sum(SIZES.values())
    for metric in module.METRICS:
        found = table.difference(None, "guess", metric)
        assert found is not None
        assert found.difference == pytest.approx(getattr(good, metric) - getattr(guess, metric))
        assert 0 < found.low < found.difference < found.high


def test_a_hospital_with_few_patients_of_a_class_is_not_compared() -> None:
    table = compared()
    assert table.result("small", "good").auroc is None
    assert table.result("small", "good").accuracy is not None
    assert {one.site for one in table.differences} == {None, "large"}


def test_a_method_is_no_better_than_itself() -> None:
    good = two_methods()["good"]
    table = compare_predictions({"good": good, "again": good}, 2, {}, seed=0, resamples=50)
    assert {(one.difference, one.low, one.high) for one in table.differences} == {(0.0, 0.0, 0.0)}


def test_a_table_is_the_same_after_json_and_in_the_report() -> None:
    table = compared()
    assert ComparisonTable.model_validate_json(table.model_dump_json()) == table
    report = table.to_report()
    assert [row.site for row in report.rows] == ["pooled", "large", "small"]
    assert report.rows[0].measures["good"].auroc == table.result(None, "good").auroc
    assert {one.method for one in report.differences} == {"good"}
    assert len(report.differences) == len(table.differences)


def test_it_prints_within_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(Console(width=80), renamed(compared()))
    text = capsys.readouterr().out
    assert "…" not in text
    assert "n/a" in text
    assert "network (large)" in text


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_study(tmp_path_factory.mktemp("study") / "sites")


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return simulate(study, tmp_path_factory.mktemp("run") / "run", tiny_settings())


def test_the_federated_rows_are_those_of_the_run(
    study: Path, finished: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_module, "FOLDS", 2)
    monkeypatch.setattr("simulations.baselines.local_network.LENGTHS", (0.5,))
    table = compare(study, finished, seed=0, processes=0, resamples=20)
    assert table.methods == METHODS
    assert table.sites == (None, *SITES)
    test = finished.metrics()["test"]
    for site in table.sites:
        expected = test["pooled"] if site is None else test["sites"][site]
        found = table.result(site, FEDERATED)
        assert [getattr(found, name) for name in SUMMARY_METRICS] == pytest.approx(
            [expected[name] for name in SUMMARY_METRICS]
        )
    assert set(table.chosen) == set(SITES)


def test_a_run_without_bundles_is_refused(study: Path, tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", load_study(study / "study.toml"), tiny_settings())
    with pytest.raises(CheckpointError, match="no hospital ended this run"):
        compare(study, store, seed=0, processes=0)
