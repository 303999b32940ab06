"""A federation on irregular time series, from site folders to predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from client.bundle import read_bundle
from client.prediction import predict_cohort
from client.site_data import read_site
from flexmoe_core.modalities.sequence import SequenceModality
from flexmoe_core.modalities.tabular import CategoricalColumn, NumericColumn, TabularModality
from flexmoe_core.study import Label, Study
from server.run_store import RunStore
from simulations.baselines.features import pooled_features
from simulations.baselines.logistic import logistic
from simulations.baselines.predictions import labels_of, read_sites
from simulations.datasets.modality_files import SequenceData, TabularData
from simulations.datasets.site_folders import PooledPatients, write_site_folders
from simulations.runs import simulate, site_bundle, site_folders
from tests.simulations.federations import tiny_settings

PATIENTS, HOURS, LONGEST = 200, 48.0, 10
LACTATE = NumericColumn(name="lactate", unit="mmol/l", range=(-8, 12))
CODE = CategoricalColumn(name="code", categories=("a", "b"))
STUDY = Study(
    name="stays",
    label=Label(name="label", classes=("no", "yes")),
    modalities=(
        SequenceModality(
            name="labs",
            encoder="shared",
            columns=(LACTATE,),
            longest=LONGEST,
            time_unit="hours",
            time_range=(0, HOURS),
        ),
        SequenceModality(
            name="codes", encoder="shared", columns=(CODE,), longest=LONGEST, time_unit="hours", time_range=(0, HOURS)
        ),
        TabularModality(name="age", encoder="shared", columns=(NumericColumn(name="years", range=(-4, 4)),)),
    ),
)


def rising_or_falling(sick: bool, generator: np.random.Generator) -> pd.DataFrame:
    """Values of the same distribution for all: only their order in time tells the class."""
    hours = generator.uniform(0, HOURS, generator.integers(6, 16))
    trend = (hours / HOURS - 0.5) * (4 if sick else -4)
    return pd.DataFrame({"hours": hours, "lactate": 2 + trend + 0.5 * generator.standard_normal(len(hours))})


def frequent_or_rare(sick: bool, generator: np.random.Generator) -> pd.DataFrame:
    """Meaningless codes, as many for all: only how close they follow each other tells the class."""
    gaps = generator.exponential(1.5 if sick else 5.0, generator.integers(5, 9))
    return pd.DataFrame({"hours": gaps.cumsum().clip(max=HOURS), "code": generator.choice(["a", "b"], len(gaps))})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hospitals; some patients lack the one sequence, some the other."""
    generator = np.random.default_rng(0)
    ids = pd.Index([f"p{place:03d}" for place in range(PATIENTS)], name="patient")
    sick_B = generator.random(PATIENTS) < 0.5
    lacks_BM = generator.random((PATIENTS, 2)) < 0.25
    split = np.resize(["train", "train", "train", "validation", "test"], PATIENTS)
    site = np.where(np.arange(PATIENTS) < PATIENTS // 2, "site-1", "site-2")
    patients = pd.DataFrame({"site": site, "split": split, "label": np.where(sick_B, "yes", "no")}, ids)
    modalities: dict[str, SequenceData | TabularData] = {
        "age": TabularData(pd.DataFrame({"years": generator.uniform(-4, 4, PATIENTS).round(3)}, ids))
    }
    for place, (name, made) in enumerate({"labs": rising_or_falling, "codes": frequent_or_rare}.items()):
        having = np.flatnonzero(~lacks_BM[:, place]).tolist()
        by_patient = pd.concat({ids[one]: made(sick_B[one], generator) for one in having}, names=["patient"])
        shuffled = by_patient.droplevel(1).sample(frac=1, random_state=place)
        modalities[name] = SequenceData(ids, shuffled, time="hours")
    out = tmp_path_factory.mktemp("sequences") / "study"
    write_site_folders(out, PooledPatients(STUDY, patients, modalities))
    return out


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    settings = tiny_settings("federation.rounds=5", "method.training.batch_size=20")
    return simulate(study, tmp_path_factory.mktemp("run") / "run", settings)


def test_hospitals_learn_trends_and_rates_together(finished: RunStore) -> None:
    metrics = finished.metrics()
    assert metrics["missing"] == {}
    assert metrics["test"]["pooled"]["n"] == PATIENTS // 5
    assert metrics["test"]["pooled"]["auroc"] > 0.85


def test_bundles_predict_new_patients_whatever_they_lack(study: Path, finished: RunStore) -> None:
    for name, folder in site_folders(study).items():
        bundle = read_bundle(site_bundle(finished, name))
        test = read_site(folder, STUDY, ("test",)).cohorts["test"]
        assert not test.observed_BM.all()
        probabilities_BY = predict_cohort(bundle, test)
        assert np.allclose(probabilities_BY.sum(axis=1), 1)


def test_logistic_regression_sees_means_last_values_and_counts(study: Path) -> None:
    """Four numbers of the measurement, six of the two codes, two of the table. Last values tell the trend."""
    sites = read_sites(site_folders(study), STUDY)
    train, test = (np.vstack(list(pooled_features(sites, STUDY, (split,)).values())) for split in ("train", "test"))
    assert train.shape[1] == 4 + 6 + 2
    labels, expected = (
        np.concatenate([labels_of(data, (split,)) for data in sites.values()]) for split in ("train", "test")
    )
    assert (logistic(train, labels, test, 2, 10.0).argmax(axis=1) == expected).mean() > 0.6
