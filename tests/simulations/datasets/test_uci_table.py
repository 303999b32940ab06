"""The committed table against the published counts of the UCI files."""

import pandas as pd
import pytest

from flexmoe_core.modalities.tabular import CategoricalColumn, NumericColumn
from flexmoe_core.study import load_study
from simulations.datasets.uci_heart import DATA, FLAMBY_DROPS, MISSING, read_table

MEASURED = [
    *("age", "sex", "chest_pain", "blood_pressure", "ecg", "cholesterol", "fasting_sugar"),
    *("peak_heart_rate", "angina", "st_depression", "slope", "vessels", "thallium"),
]
EMPTY_CELLS = {
    "cleveland": {"vessels": 4, "thallium": 2},
    "hungary": {
        **{"blood_pressure": 1, "ecg": 1, "cholesterol": 23, "fasting_sugar": 8, "peak_heart_rate": 1, "angina": 1},
        **{"slope": 190, "vessels": 291, "thallium": 266},
    },
    "switzerland": {
        **{"blood_pressure": 2, "ecg": 1, "fasting_sugar": 75, "peak_heart_rate": 1, "angina": 1},
        **{"st_depression": 6, "slope": 17, "vessels": 118, "thallium": 52},
    },
    "va-long-beach": {
        **{"blood_pressure": 56, "cholesterol": 7, "fasting_sugar": 7, "peak_heart_rate": 53, "angina": 53},
        **{"st_depression": 56, "slope": 102, "vessels": 198, "thallium": 166},
    },
}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return read_table()


def test_the_hospitals_have_their_published_numbers_of_patients(table: pd.DataFrame) -> None:
    sizes = table["hospital"].value_counts(sort=False).to_dict()
    assert list(sizes.items()) == [("cleveland", 303), ("hungary", 294), ("switzerland", 123), ("va-long-beach", 200)]
    assert table.index.is_unique
    assert table.index[303] == "hungary-0001"
    assert table.index[-1] == "va-long-beach-0200"


def test_the_columns_are_the_thirteen_of_uci(table: pd.DataFrame) -> None:
    assert list(table.columns) == ["hospital", *MEASURED, "num"]


@pytest.mark.parametrize("hospital", list(EMPTY_CELLS))
def test_as_many_cells_are_empty_as_published(table: pd.DataFrame, hospital: str) -> None:
    empty = table[table["hospital"] == hospital].isna().sum()
    assert empty[empty > 0].to_dict() == EMPTY_CELLS[hospital]


def test_the_complete_patients_are_nearly_all_of_one_hospital(table: pd.DataFrame) -> None:
    complete = table[MEASURED].notna().all(axis=1).groupby(table["hospital"]).sum()
    assert complete.to_dict() == {"cleveland": 297, "hungary": 1, "switzerland": 0, "va-long-beach": 1}


def test_impossible_zeros_are_kept_as_published(table: pd.DataFrame) -> None:
    zeros = {column: table.index[table[column] == 0] for column in ("cholesterol", "blood_pressure")}
    per_hospital = table["hospital"][zeros["cholesterol"]].value_counts().to_dict()
    assert per_hospital == {"switzerland": 123, "va-long-beach": 49}
    assert list(zeros["blood_pressure"]) == ["va-long-beach-0034"]


def test_the_patients_that_flamby_keeps(table: pd.DataFrame) -> None:
    kept = table[table.drop(columns=FLAMBY_DROPS).notna().all(axis=1)]
    positive = (kept["num"] > 0).groupby(kept["hospital"], sort=False).agg(["sum", "size"])
    assert {str(name): tuple(row) for name, row in positive.iterrows()} == {
        "cleveland": (139, 303),
        "hungary": (98, 261),
        "switzerland": (45, 46),
        "va-long-beach": (101, 130),
    }


def test_the_first_and_last_published_rows(table: pd.DataFrame) -> None:
    first, last = table.iloc[0], table.iloc[-1]
    assert tuple(first[["age", "sex", "blood_pressure", "cholesterol", "st_depression", "thallium", "num"]]) == (
        *(63, "male", 145, 233, 2.3, "fixed defect", 0),
    )
    assert tuple(last[["age", "sex", "cholesterol", "peak_heart_rate", "angina", "num"]]) == (
        *(62, "male", 254, 93, "yes", 1),
    )


def test_the_study_declares_every_value_that_is_not_missing(table: pd.DataFrame) -> None:
    study = load_study(DATA / "uci_heart.toml")
    columns = [(modality.name, column) for modality in study.modalities for column in modality.columns]
    assert sorted(column.name for _, column in columns) == sorted(MEASURED)
    for modality, column in columns:
        values = table[column.name].dropna()
        values = values[~values.isin(MISSING.get(modality, {}).get(column.name, []))]
        if isinstance(column, NumericColumn):
            assert values.between(*column.range).all(), column.name
        elif isinstance(column, CategoricalColumn):
            assert set(values) == set(column.categories)


def test_the_attribution_names_the_authors_and_the_license() -> None:
    text = (DATA / "ATTRIBUTION.md").read_text(encoding="utf-8")
    wanted = ("Janosi", "Steinbrunn", "Pfisterer", "Detrano", "10.24432/C52P4X", "Attribution 4.0")
    assert [word for word in wanted if word not in text] == []
