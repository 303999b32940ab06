from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from client.site_data import read_site
from flexmoe_core.study import load_study
from simulations.datasets.mean_fill import mean_filled
from simulations.datasets.modality_files import EmbeddingData, TabularData
from simulations.datasets.site_folders import PooledPatients, write_site_folders
from simulations.datasets.synthetic import SyntheticFederation, generate
from simulations.datasets.uci_heart import load_uci_heart
from simulations.runs import site_folders

IDS = pd.Index(["a1", "a2", "a3", "a4", "b1", "b2"], name="patient")
PATIENTS = pd.DataFrame(
    {"site": ["a", "a", "a", "a", "b", "b"], "split": ["train", "train", "test", "train", "train", "test"]}, IDS
)
STUDY = generate(SyntheticFederation(sites=1, modalities=1, patients_per_site=20, classes=2, missing=0, seed=0)).study


def filled_table(columns: dict[str, list[object]], missing: dict[str, list[float]] | None = None) -> pd.DataFrame:
    data = TabularData(pd.DataFrame(columns, IDS), missing or {})
    filled = mean_filled(PooledPatients(STUDY, PATIENTS, {"m": data})).modalities["m"]
    assert isinstance(filled, TabularData)
    return filled.table


def test_numbers_become_the_mean_of_the_site_s_training_patients() -> None:
    table = filled_table({"x": [1.0, 3.0, 100.0, None, 7.0, None]})
    assert table["x"].tolist() == [1.0, 3.0, 100.0, 2.0, 7.0, 7.0]


def test_a_site_that_measured_nobody_has_the_mean_of_the_sites_means() -> None:
    table = filled_table({"x": [1.0, 3.0, None, None, None, None]})
    assert table["x"].tolist() == [1.0, 3.0, 2.0, 2.0, 2.0, 2.0]


def test_categories_become_the_most_frequent_one_of_training() -> None:
    table = filled_table({"x": ["q", "q", "r", None, None, None]})
    assert table["x"].tolist() == ["q", "q", "r", "q", "q", "q"]


def test_empty_cells_of_a_measured_modality_stay_empty() -> None:
    table = filled_table({"x": [1.0, None, None, None, 5.0, None], "y": ["q", "q", "q", None, "r", None]})
    assert pd.isna(table["x"]["a2"])
    assert (table.loc["a4", "x"], table.loc["a4", "y"]) == (1.0, "q")


def test_values_that_mean_missing_are_no_measurements() -> None:
    table = filled_table({"x": [4, 0, 0, None, 8, 0]}, {"x": [0]})
    assert table["x"].tolist() == [4.0, 4.0, 4.0, 4.0, 8.0, 8.0]


def test_a_column_that_no_training_patient_has_stays_empty() -> None:
    table = filled_table({"x": [None, None, 3.0, None, None, None], "y": [None] * 6})
    assert table["x"].isna().tolist() == [True, True, False, True, True, True]
    assert table["y"].isna().all()


def test_vectors_become_the_mean_vector() -> None:
    vectors = pd.DataFrame({0: [0.0, 2.0, 50.0, None, None, 9.0], 1: [1.0, 1.0, 60.0, None, None, 9.0]}, IDS)
    pooled = PooledPatients(STUDY, PATIENTS, {"m": EmbeddingData(vectors)})
    filled = mean_filled(pooled).modalities["m"]
    assert isinstance(filled, EmbeddingData)
    assert filled.vectors.loc[["a4", "b1"]].to_numpy().tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert filled.vectors.loc[["b2"]].to_numpy().tolist() == [[9.0, 9.0]]
    assert pooled.modalities["m"].observed().sum() == 4


@pytest.mark.parametrize("dataset", ["synthetic", "uci-heart"])
def test_filled_folders_are_valid_and_nobody_lacks_anything(tmp_path: Path, dataset: str) -> None:
    sizes = SyntheticFederation(sites=2, modalities=3, patients_per_site=40, classes=2, missing=0.5, seed=1)
    pooled = generate(sizes) if dataset == "synthetic" else load_uci_heart("flamby", 0)
    assert not pooled.observed().all(axis=None)
    write_site_folders(tmp_path / "study", mean_filled(pooled))
    study = load_study(tmp_path / "study" / "study.toml")
    for folder in site_folders(tmp_path / "study").values():
        data = read_site(folder, study, ("train", "validation", "test"))
        assert all(cohort.observed_BM.all() for cohort in data.cohorts.values())
        assert data.public.full_modality
