from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from flexmoe_core.errors import InputError
from flexmoe_core.modalities.tabular import NumericColumn, TabularModality
from flexmoe_core.study import load_study
from simulations.datasets.modality_files import TabularData
from simulations.datasets.site_folders import PooledPatients
from simulations.datasets.synthetic import SIGNALS, SyntheticFederation, generate, prepare_synthetic
from tests.simulations.datasets.folders import contents


def federation(**changes: float) -> SyntheticFederation:
    usual = {"sites": 3, "modalities": 4, "patients_per_site": 200, "classes": 2, "missing": 0.4, "seed": 0}
    return SyntheticFederation.model_validate(usual | changes)


def table_of(pooled: PooledPatients, modality: str) -> pd.DataFrame:
    data = pooled.modalities[modality]
    assert isinstance(data, TabularData)
    return data.table


def test_patients_lack_modalities_at_the_rate_but_never_all() -> None:
    observed = generate(federation()).observed()
    assert observed.any(axis=1).all()
    assert 1 - observed.to_numpy().mean() == pytest.approx(0.4, abs=0.05)


def test_even_when_everything_is_to_be_missing_one_modality_stays() -> None:
    assert (generate(federation(missing=1.0)).observed().sum(axis=1) == 1).all()
    assert generate(federation(missing=0.0)).observed().to_numpy().all()


def test_classes_are_about_equally_frequent() -> None:
    counts = generate(federation(classes=3)).patients["label"].value_counts()
    assert sorted(counts.index) == ["class_0", "class_1", "class_2"]
    assert counts.min() > 0.8 * counts.max()


def test_values_stand_within_the_declared_ranges_and_categories() -> None:
    pooled = generate(federation(patients_per_site=1000))
    for modality in pooled.study.modalities:
        assert isinstance(modality, TabularModality)
        for column in modality.columns:
            values = table_of(pooled, modality.name)[column.name].dropna()
            if isinstance(column, NumericColumn):
                assert values.between(*column.range).all()
            else:
                assert set(values) == set(column.categories)


def test_each_modality_tells_something_and_all_together_most() -> None:
    pooled = generate(federation(missing=0.0, patients_per_site=400))
    labels = pooled.patients["label"]
    inputs = [table_of(pooled, name)[list(SIGNALS)].to_numpy() for name in pooled.study.modality_names]
    alone = [LogisticRegression().fit(values, labels).score(values, labels) for values in inputs]
    together = np.concatenate(inputs, axis=1)
    assert min(alone) > 0.6
    assert LogisticRegression().fit(together, labels).score(together, labels) > max(alone) + 0.05


def test_written_folders_repeat_and_differ_by_seed(tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("same", 5), ("other", 6)):
        out = tmp_path / name
        prepare_synthetic(out, sites=2, modalities=2, patients_per_site=20, classes=2, missing=0.3, seed=seed)
    one, same, other = (contents(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same != other
    assert load_study(tmp_path / "one" / "study.toml").modality_names == ("modality_1", "modality_2")
    assert {"site-1/site.toml", "site-2/site.toml"} < set(one)


def test_every_problem_of_the_arguments_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        prepare_synthetic(
            tmp_path / "out", sites=0, modalities=63, patients_per_site=0, classes=1, missing=1.5, seed=0
        )
    places = [problem.place for problem in refusal.value.problems]
    assert places == ["sites", "modalities", "patients_per_site", "classes", "missing"]
    assert list(tmp_path.iterdir()) == []
