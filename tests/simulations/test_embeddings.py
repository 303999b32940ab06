"""A federation on precomputed vectors, from site folders to predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from client.bundle import read_bundle
from client.prediction import predict_cohort
from client.site_data import read_site
from flexmoe_core.modalities.embedding import EmbeddingModality
from flexmoe_core.modalities.tabular import NumericColumn, TabularModality
from flexmoe_core.study import Label, Study
from server.run_store import RunStore
from simulations.baselines.features import pooled_features
from simulations.baselines.logistic import logistic
from simulations.baselines.predictions import labels_of, read_sites
from simulations.datasets.modality_files import EmbeddingData, TabularData
from simulations.datasets.site_folders import PooledPatients, write_site_folders
from simulations.runs import simulate, site_bundle, site_folders
from tests.simulations.federations import tiny_settings

PATIENTS, SIZE = 160, 12
STUDY = Study(
    name="vectors",
    label=Label(name="label", classes=("no", "yes")),
    modalities=(
        EmbeddingModality(name="image", encoder="shared", size=SIZE, range=(-4, 4)),
        EmbeddingModality(name="text", encoder="local"),
        TabularModality(name="age", encoder="shared", columns=(NumericColumn(name="years", range=(-4, 4)),)),
    ),
)


def noisy_vectors(
    hidden_B: np.ndarray, ids: pd.Index, lacks_B: np.ndarray, generator: np.random.Generator
) -> EmbeddingData:
    """Noisy linear images of a hidden number, nothing for who lacks the modality."""
    direction_F = generator.standard_normal(SIZE)
    values_BF = hidden_B[:, None] * direction_F + generator.standard_normal((len(ids), SIZE))
    values_BF[lacks_B] = np.nan
    return EmbeddingData(pd.DataFrame(values_BF, index=ids))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hospitals; the label is the sign of a number that each modality shows noisily and some patients lack."""
    generator = np.random.default_rng(0)
    ids = pd.Index([f"p{place:03d}" for place in range(PATIENTS)], name="patient")
    hidden_B = generator.standard_normal(PATIENTS)
    lacks_BM = generator.random((PATIENTS, 2)) < 0.3
    split = np.resize(["train", "train", "train", "validation", "test"], PATIENTS)
    site = np.where(np.arange(PATIENTS) < PATIENTS // 2, "site-1", "site-2")
    label = np.where(hidden_B > 0, "yes", "no")
    patients = pd.DataFrame({"site": site, "split": split, "label": label}, ids)
    years = pd.DataFrame({"years": (hidden_B + generator.standard_normal(PATIENTS)).clip(-4, 4).round(3)}, ids)
    modalities = {
        "image": noisy_vectors(hidden_B, ids, lacks_BM[:, 0], generator),
        "text": noisy_vectors(hidden_B, ids, lacks_BM[:, 1], generator),
        "age": TabularData(years),
    }
    out = tmp_path_factory.mktemp("vectors") / "study"
    write_site_folders(out, PooledPatients(STUDY, patients, modalities))
    return out


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return simulate(study, tmp_path_factory.mktemp("run") / "run", tiny_settings())


def test_hospitals_learn_from_vectors_together(finished: RunStore) -> None:
    metrics = finished.metrics()
    assert metrics["missing"] == {}
    assert metrics["test"]["pooled"]["n"] == PATIENTS // 5
    assert metrics["test"]["pooled"]["auroc"] > 0.8


def test_bundles_predict_new_patients_whatever_they_lack(study: Path, finished: RunStore) -> None:
    for name, folder in site_folders(study).items():
        bundle = read_bundle(site_bundle(finished, name))
        test = read_site(folder, STUDY, ("test",)).cohorts["test"]
        assert not test.observed_BM.all()
        probabilities_BY = predict_cohort(bundle, test)
        assert np.allclose(probabilities_BY.sum(axis=1), 1)


def test_logistic_regression_takes_the_same_vectors(study: Path) -> None:
    """The shared vector, each hospital's own, a missing flag for each of these, and the table's two features."""
    sites = read_sites(site_folders(study), STUDY)
    train, test = (np.vstack(list(pooled_features(sites, STUDY, (split,)).values())) for split in ("train", "test"))
    assert train.shape[1] == 3 * (SIZE + 1) + 2
    labels, expected = (
        np.concatenate([labels_of(data, (split,)) for data in sites.values()]) for split in ("train", "test")
    )
    assert (logistic(train, labels, test, 2, 10.0).argmax(axis=1) == expected).mean() > 0.75
