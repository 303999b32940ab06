"""A federation on scans, from site folders to predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.bundle import read_bundle
from client.check import check_site
from client.prediction import predict_cohort
from client.site_data import read_site
from flexmoe_core.study import load_study
from server.run_store import RunStore
from simulations.baselines.features import pooled_features
from simulations.baselines.logistic import logistic
from simulations.baselines.predictions import labels_of, read_sites
from simulations.datasets.synthetic_scans import prepare_synthetic_scans
from simulations.runs import simulate, site_bundle, site_folders
from tests.simulations.datasets.folders import contents
from tests.simulations.federations import tiny_settings


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hospitals, a third of whose patients have no scan."""
    out = tmp_path_factory.mktemp("scans") / "study"
    prepare_synthetic_scans(out, sites=2, patients_per_site=110, side=12, missing=0.3, seed=0)
    return out


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    settings = tiny_settings(
        "federation.rounds=6", "method.training.learning_rate=0.005", "method.training.batch_size=16"
    )
    return simulate(study, tmp_path_factory.mktemp("run") / "run", settings)


def test_hospitals_learn_from_scans_together(finished: RunStore) -> None:
    metrics = finished.metrics()
    assert metrics["missing"] == {}
    assert metrics["test"]["pooled"]["auroc"] > 0.9


def test_the_scan_tells_more_than_the_markers(study: Path, finished: RunStore) -> None:
    """Hiding the markers of patients with a scan leaves most of the answer."""
    right = []
    for name, folder in site_folders(study).items():
        test = read_site(folder, load_study(study / "study.toml"), ("test",)).cohorts["test"]
        scanned = test.select(test.observed_BM[:, 0].nonzero().squeeze(1))
        scanned.observed_BM[:, 1] = False
        probabilities_BY = predict_cohort(read_bundle(site_bundle(finished, name)), scanned)
        right.append(probabilities_BY.argmax(axis=1) == scanned.labels_B.numpy())
    assert np.concatenate(right).mean() > 0.75


def test_every_folder_passes_the_check(study: Path) -> None:
    for folder in site_folders(study).values():
        result = check_site(folder)
        assert result.problems == ()
        coverage = result.coverage["train"].modalities
        assert 0 < coverage["scan"] < coverage["markers"]


def test_logistic_regression_takes_coarse_means(study: Path) -> None:
    declared = load_study(study / "study.toml")
    sites = read_sites(site_folders(study), declared)
    train, test = (
        np.vstack(list(pooled_features(sites, declared, (split,)).values())) for split in ("train", "test")
    )
    assert train.shape[1] == 64 + 1 + 4
    labels, expected = (
        np.concatenate([labels_of(data, (split,)) for data in sites.values()]) for split in ("train", "test")
    )
    assert (logistic(train, labels, test, 2, 1.0).argmax(axis=1) == expected).mean() > 0.8


def test_the_same_arguments_write_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        prepare_synthetic_scans(tmp_path / name, sites=2, patients_per_site=5, side=8, missing=0.5, seed=seed)
    one, again, other = (contents(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again
    assert one != other
