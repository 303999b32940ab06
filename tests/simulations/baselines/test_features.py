from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.entries import ENTRIES
from flexmoe_core.cohort import Cohort
from flexmoe_core.encoders.registry import ENCODERS
from flexmoe_core.modalities.embedding import EmbeddingModality
from flexmoe_core.modalities.registry import AnyPreprocessing
from flexmoe_core.modalities.sequence import SequenceModality
from flexmoe_core.modalities.tabular import CategoricalColumn, NumericColumn, TabularModality, TabularPreprocessing
from flexmoe_core.modalities.volume import VolumeModality
from flexmoe_core.study import Label, Study
from simulations.baselines.features import FLATTENERS, all_missing, flat_features, pooled_features, site_features
from tests.simulations.baselines.patients import prepared

SHARED = TabularModality(name="labs", encoder="shared", columns=(NumericColumn(name="sodium", range=(0, 1)),))
LOCAL = TabularModality(name="scan", encoder="local")
STUDY = Study(name="s", label=Label(name="y", classes=("no", "yes")), modalities=(SHARED, LOCAL))


def cohort(scan_width: int, scans: float) -> Cohort:
    """The first patient has both modalities, the second (whose rows must not be read) has none."""
    inputs = {"labs": torch.tensor([[0.5, 0.0], [9.0, 9.0]]), "scan": torch.full((2, scan_width), scans)}
    return Cohort(inputs, torch.tensor([[True, True], [False, False]]), torch.tensor([0, 1]))


def preprocessing(scans: int) -> dict[str, AnyPreprocessing]:
    own = tuple(NumericColumn(name=f"scan_{place}", range=(0, 1)) for place in range(scans))
    return {"labs": SHARED.preprocessing, "scan": TabularPreprocessing(columns=own)}


def test_a_missing_modality_sets_the_missing_flag_of_each_of_its_columns() -> None:
    x_BF = flat_features(cohort(2, 3.0), STUDY, preprocessing(1), STUDY.modality_names)
    assert x_BF.tolist() == [[0.5, 0.0, 3.0, 3.0], [0.0, 1.0, 0.0, 1.0]]


def test_a_column_of_categories_has_one_missing_flag() -> None:
    column = CategoricalColumn(name="sex", categories=("female", "male"))
    assert all_missing((column, SHARED.columns[0])).tolist() == [0.0, 0.0, 1.0, 0.0, 1.0]


def test_a_vector_has_one_missing_flag() -> None:
    views = EmbeddingModality(name="view", encoder="shared", size=2, range=(0, 1))
    study = Study(name="s", label=STUDY.label, modalities=(views,))
    seen = Cohort({"view": torch.tensor([[0.5, 3.0], [9.0, 9.0]])}, torch.tensor([[True], [False]]), torch.zeros(2))
    x_BF = flat_features(seen, study, {"view": views.preprocessing}, ("view",))
    assert x_BF.tolist() == [[0.5, 3.0, 0.0], [0.0, 0.0, 1.0]]


def test_a_volume_has_the_means_of_64_cells_and_one_missing_flag() -> None:
    scan = VolumeModality(name="scan", encoder="shared", voxels=(8, 8, 8), range=(0, 1))
    study = Study(name="s", label=STUDY.label, modalities=(scan,))
    x_BDHW = torch.full((2, 8, 8, 8), 0.5)
    x_BDHW[0, :2, :2, :2] = 3.0
    seen = Cohort({"scan": x_BDHW}, torch.tensor([[True], [False]]), torch.zeros(2))
    x_BF = flat_features(seen, study, {"scan": scan.preprocessing}, ("scan",))
    assert x_BF.tolist() == [[3.0, *[0.5] * 63, 0.0], [0.0] * 64 + [1.0]]


def test_a_column_over_time_gives_mean_last_value_count_and_missing_flag() -> None:
    columns = (SHARED.columns[0], CategoricalColumn(name="code", categories=("a", "b")))
    labs = SequenceModality(
        name="labs", encoder="shared", columns=columns, longest=3, time_unit="days", time_range=(0, 1)
    )
    study = Study(name="s", label=STUDY.label, modalities=(labs,))
    clock, padding = [1.0, 0.5, 0.5], [0.0] * 8
    x_BTC = torch.tensor(
        [
            [[*clock, 1.0, 0.0, 1, 0, 0], [*clock, 2.0, 0.0, 0, 1, 0], [*clock, 0.0, 1.0, 0, 1, 0]],
            [[*clock, 5.0, 0.0, 0, 0, 1], padding, padding],
            [[9.0] * 8] * 3,
        ]
    )
    seen = Cohort({"labs": x_BTC}, torch.tensor([[True], [True], [False]]), torch.zeros(3))
    x_BF = flat_features(seen, study, {"labs": labs.preprocessing}, ("labs",))
    assert x_BF[0].tolist() == [1.5, 2, 2, 0, pytest.approx(1 / 3), pytest.approx(2 / 3), 0, 1, 3, 0]
    assert x_BF[1].tolist() == [5, 5, 1, 0, 0, 0, 0, 0, 0, 1]
    assert x_BF[2].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 1]


def test_every_kind_is_flattened() -> None:
    assert FLATTENERS.keys() == ENCODERS.keys() == ENTRIES.keys()


def test_a_modality_without_columns_gives_nothing() -> None:
    alone = Cohort({}, torch.tensor([[True, False]]), torch.tensor([0]))
    assert flat_features(alone, STUDY, {}, STUDY.modality_names).shape == (1, 0)


def test_pooled_hospitals_share_shared_columns_and_keep_local_ones_apart(tmp_path: Path) -> None:
    _, _, sites = prepared(tmp_path / "study")
    one, two = (
        replace(data, cohorts={"train": cohort(2 * scans, 2.0 + scans)}, preprocessing=preprocessing(scans))
        for data, scans in zip(sites.values(), (1, 2), strict=True)
    )
    pooled = pooled_features({"one": one, "two": two}, STUDY, ("train",))
    assert pooled["one"].tolist() == [[0.5, 0.0, 3.0, 3.0, 0, 0, 0, 0], [0.0, 1.0, 0.0, 1.0, 0, 0, 0, 0]]
    assert pooled["two"].tolist() == [[0.5, 0.0, 0, 0, 4.0, 4.0, 4.0, 4.0], [0.0, 1.0, 0, 0, 0, 1.0, 0, 1.0]]


def test_splits_follow_each_other(tmp_path: Path) -> None:
    study, _, sites = prepared(tmp_path / "study")
    data = sites["site-1"]
    parts = [site_features(data, study, (split,)) for split in ("train", "validation")]
    assert np.array_equal(site_features(data, study, ("train", "validation")), np.vstack(parts))
    assert np.array_equal(pooled_features(sites, study, ("train",))["site-1"], parts[0])
