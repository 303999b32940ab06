from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from flexmoe_core.cohort import Cohort
from flexmoe_core.study import CategoricalColumn, Label, Modality, NumericColumn, Study
from simulations.baselines.features import all_missing, flat_features, pooled_features, site_features
from tests.simulations.baselines.patients import prepared

SHARED = Modality(
    name="labs", kind="tabular", encoder="shared", columns=(NumericColumn(name="sodium", range=(0, 1)),)
)
LOCAL = Modality(name="scan", kind="tabular", encoder="local")
STUDY = Study(name="s", label=Label(name="y", classes=("no", "yes")), modalities=(SHARED, LOCAL))


def cohort(scan_width: int, scans: float) -> Cohort:
    """The first patient has both modalities, the second (whose rows must not be read) has none."""
    inputs = {"labs": torch.tensor([[0.5, 0.0], [9.0, 9.0]]), "scan": torch.full((2, scan_width), scans)}
    return Cohort(inputs, torch.tensor([[True, True], [False, False]]), torch.tensor([0, 1]))


def columns(scans: int) -> dict[str, tuple[NumericColumn | CategoricalColumn, ...]]:
    own = tuple(NumericColumn(name=f"scan_{place}", range=(0, 1)) for place in range(scans))
    return {"labs": SHARED.columns, "scan": own}


def test_a_missing_modality_sets_the_missing_flag_of_each_of_its_columns() -> None:
    x_BF = flat_features(cohort(2, 3.0), STUDY, columns(1), STUDY.modality_names)
    assert x_BF.tolist() == [[0.5, 0.0, 3.0, 3.0], [0.0, 1.0, 0.0, 1.0]]


def test_a_column_of_categories_has_one_missing_flag() -> None:
    column = CategoricalColumn(name="sex", categories=("female", "male"))
    assert all_missing((column, SHARED.columns[0])).tolist() == [0.0, 0.0, 1.0, 0.0, 1.0]


def test_a_modality_without_columns_gives_nothing() -> None:
    alone = Cohort({}, torch.tensor([[True, False]]), torch.tensor([0]))
    assert flat_features(alone, STUDY, {}, STUDY.modality_names).shape == (1, 0)


def test_pooled_hospitals_share_shared_columns_and_keep_local_ones_apart(tmp_path: Path) -> None:
    _, _, sites = prepared(tmp_path / "study")
    one, two = (
        replace(data, cohorts={"train": cohort(2 * scans, 2.0 + scans)}, columns=columns(scans))
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
