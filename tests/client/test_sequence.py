import math
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.bundle import read_bundle
from client.cache import load_site
from client.check import check_site
from flexmoe_core.errors import Problem
from flexmoe_core.modalities.sequence import SequencePreprocessing
from flexmoe_core.modalities.tabular import CategoricalColumn, NumericColumn
from tests.client.conftest import SiteFolder, make_site
from tests.client.coordinator import coordinate, make_cpu_site

OWN_COLUMN = '[[modality.column]]\nname = "b"\ntype = "numeric"\n[modality.columns]\nheart'
SECRET = "87310"
SHARED = """
[[modality]]
name = "vitals"
kind = "sequence"
encoder = "shared"
longest = 3
time_unit = "hours"
time_range = [0, 48]
[[modality.column]]
name = "heart_rate"
type = "numeric"
unit = "/min"
range = [40, 200]
[[modality.column]]
name = "rhythm"
type = "categorical"
categories = ["sinus", "other"]
"""
ENTRY = """
[[modality]]
name = "vitals"
file = "vitals.csv"
time = "hour"
missing = ["?"]
[modality.columns]
heart_rate = { column = "hr", missing = [0] }
rhythm = { values = { S = "sinus" } }
"""
LOCAL = '\n[[modality]]\nname = "vitals"\nkind = "sequence"\nencoder = "local"\nlongest = 3\n'
LOCAL_ENTRY = """
[[modality]]
name = "vitals"
file = "vitals.csv"
time = "hour"
[[modality.column]]
name = "rate"
type = "numeric"
column = "hr"
missing = [0, "?"]
"""
ROWS = """patient,hour,hr,rhythm,note
p2,48,200,other,x
p1,24,120,S,x
p1,12,?,other,x
p4,0,40,,x
p1,0,40,?,x
p5,?,0,?,x
p1,24,160,sinus,x
"""


def add_vitals(site: SiteFolder, declaration: str = SHARED, entry: str = ENTRY) -> SiteFolder:
    """The good folder with a fourth modality."""
    site.write("study.toml", (site / "study.toml").read_text() + declaration)
    site.write("site.toml", (site / "site.toml").read_text() + entry)
    site.write("vitals.csv", ROWS)
    return site


@pytest.fixture
def shared(site: SiteFolder) -> SiteFolder:
    return add_vitals(site)


def test_rows_become_steps_in_the_order_of_time_on_the_scale_of_the_study(shared: SiteFolder) -> None:
    data = shared.read()
    assert data.shapes["vitals"] == (3, 8)
    train, validation, test = data.cohorts.values()
    assert train.inputs["vitals"].dtype == torch.float32
    one, two, five = train.inputs["vitals"].tolist()
    log = math.log2(1 + 12 * 3 / 48)
    assert one == [  # the row at hour 0 is one too many; equal times keep the order of the file
        [1, -1, pytest.approx(log), 0, 1, 0, 1, 0],
        [1, 0, pytest.approx(log), 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 0, 1, 0, 0],
    ]
    assert two == [[1, 2, 0, 2, 0, 0, 1, 0], [0] * 8, [0] * 8]
    assert five == [[0] * 8] * 3  # the only row has no value, so its time is not looked at
    assert train.observed_BM[:, 3].tolist() == [True, True, False]
    assert not validation.observed_BM[0, 3]  # p3 has no row
    assert test.inputs["vitals"][0].tolist() == [[1, -2, 0, -2, 0, 0, 0, 1], [0] * 8, [0] * 8]
    assert test.observed_BM[:, 3].tolist() == [True, False]


def test_the_documented_example_is_good(site: SiteFolder) -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    section = text.split("### Sequences\n", 1)[1].split("\n##", 1)[0]
    study, entry, table = re.findall(r"```(?:toml|csv)\n(.*?)```", section, re.DOTALL)
    add_vitals(site, study, entry).write("vitals.csv", table)
    assert site.problems() == ()
    assert site.read(("train",)).cohorts["train"].observed_BM[:, 3].tolist() == [True, True, False]


def test_parquet_says_the_same(shared: SiteFolder) -> None:
    good = shared.read()
    shared.edit("site.toml", "vitals.csv", "vitals.parquet")
    table = pd.read_csv(shared / "vitals.csv", na_values="?")
    table.to_parquet(shared / "vitals.parquet")
    for split, cohort in shared.read().cohorts.items():
        assert torch.equal(cohort.inputs["vitals"], good.cohorts[split].inputs["vitals"])
        assert torch.equal(cohort.observed_BM, good.cohorts[split].observed_BM)


def test_a_local_encoder_has_the_columns_and_scales_of_the_training_patients(site: SiteFolder) -> None:
    add_vitals(site, LOCAL, LOCAL_ENTRY)
    data = site.read(("train", "test"))
    found = data.preprocessing["vitals"]
    assert isinstance(found, SequencePreprocessing)
    hours = torch.tensor([48.0, 24, 0, 24], dtype=torch.float64)
    assert sum(found.time.range) / 2 == hours.mean()
    assert found.time.range[1] - found.time.range[0] == pytest.approx(4 * hours.std(correction=0).item())
    (column,) = found.columns
    assert isinstance(column, NumericColumn)
    assert sum(column.range) / 2 == pytest.approx((200 + 120 + 40 + 160) / 4)
    assert data.shapes["vitals"] == (3, 5)
    assert site.read(("test",)).preprocessing == data.preprocessing


def test_a_shared_modality_that_the_site_lacks_has_inputs_for_nobody(site: SiteFolder) -> None:
    site.write("study.toml", (site / "study.toml").read_text() + SHARED)
    site.edit("site.toml", "full_modality = true", "full_modality = false")
    cohort = site.read(("train",)).cohorts["train"]
    assert torch.equal(cohort.inputs["vitals"], torch.zeros(3, 3, 8))
    assert not cohort.observed_BM[:, 3].any()


def edit(old: str, new: str, file: str = "vitals.csv") -> Callable[[SiteFolder], None]:
    return lambda site: site.edit(file, old, new)


def write(text: str) -> Callable[[SiteFolder], None]:
    return lambda site: site.write("vitals.csv", text)


TIME = "column hour, line 3"
BROKEN: dict[str, tuple[Callable[[SiteFolder], None], str, str, str]] = {
    "no time": (edit("p1,24", "p1,"), "vitals.csv", TIME, "has no time"),
    "time of words": (edit("p1,24", "p1,noon"), "vitals.csv", TIME, "is not a number"),
    "time of day": (edit("p1,24", "p1,24:00"), "vitals.csv", TIME, "is not a number"),
    "time missing": (edit("p1,24", "p1,?"), "vitals.csv", TIME, "is not a number"),
    "time nan": (edit("p1,24", "p1,NaN"), "vitals.csv", TIME, "is not a finite number"),
    "time inf": (edit("p1,24", "p1,-inf"), "vitals.csv", TIME, "is not a finite number"),
    "time outside": (edit("p1,24", f"p1,{SECRET}"), "vitals.csv", TIME, "outside the plausible range 0 to 48 hours"),
    "number of words": (edit("120", "fast"), "vitals.csv", "column hr, line 3", "is not a number"),
    "number nan": (edit("120", "nan"), "vitals.csv", "column hr, line 3", "is not a finite number"),
    "number outside": (edit("120", SECRET), "vitals.csv", "column hr, line 3", "range 40 to 200 /min"),
    "unknown category": (edit("other,x", f"{SECRET},x"), "vitals.csv", "column rhythm, line 2", "is in no category"),
    "no id": (edit("p1,24", ",24"), "vitals.csv", "column patient, line 3", "has no patient id"),
    "stranger": (edit("p1,24", f"{SECRET},24"), "vitals.csv", "column patient, line 3", "is no patient"),
    "no time column": (edit("hour", "when"), "vitals.csv", "", "has no column 'hour'"),
    "no value column": (edit(",hr", ",rate"), "vitals.csv", "", "has no column 'hr'"),
    "no id column": (edit("patient", "person"), "vitals.csv", "", "has no column 'patient'"),
    "ragged": (edit("p1,24", "p1,2,4"), "vitals.csv", "line 3", "more or fewer cells"),
    "no rows": (write("patient,hour,hr,rhythm\n"), "vitals.csv", "", "has no rows"),
    "no values": (write("patient,hour,hr,rhythm\np1,3,?,\np2,x,0,?\n"), "vitals.csv", "", "no value in any row"),
    "empty": (write(""), "vitals.csv", "", "is empty"),
    "absent": (lambda site: (site / "vitals.csv").unlink(), "site.toml", "modality.vitals.file", "names no file"),
    "outside": (edit('"vitals.csv', '"../vitals.csv', "site.toml"), "site.toml", "modality.vitals.file", "outside"),
    "other format": (edit('"vitals.csv', '"site.toml', "site.toml"), "site.toml", "", "neither .csv nor .parquet"),
    "unknown key": (edit("time =", "tyme =", "site.toml"), "site.toml", "modality.vitals.tyme", "not a known key"),
    "unknown column": (
        edit("heart_rate =", "heartrate =", "site.toml"),
        "site.toml",
        "modality.vitals.columns.heartrate",
        "is not a column of the study",
    ),
    "unknown spelling": (
        edit('S = "sinus"', 'S = "sinis"', "site.toml"),
        "site.toml",
        "modality.vitals.columns.rhythm.values",
        "leads to the unknown category 'sinis'",
    ),
    "ids as time": (edit('"hour"', '"patient"', "site.toml"), "site.toml", "modality.vitals", "column 'patient'"),
    "own columns": (
        edit(
            "[modality.columns]\nheart",
            OWN_COLUMN,
            "site.toml",
        ),
        "site.toml",
        "modality.vitals.column",
        "defines columns that the study already defines",
    ),
}
SEVERAL = {"unknown column", "unknown spelling"}


@pytest.mark.parametrize("name", BROKEN)
def test_a_fault_is_one_problem_with_its_place_and_remedy(shared: SiteFolder, name: str) -> None:
    break_it, file, place, what = BROKEN[name]
    break_it(shared)
    found = shared.problems()
    assert len(found) == 1 or name in SEVERAL
    problem = next(one for one in found if one.place == place)
    assert problem.file == str(shared / file)
    assert what in problem.what
    assert problem.remedy
    assert SECRET not in str(found)


def test_all_problems_come_at_once(shared: SiteFolder) -> None:
    shared.edit("vitals.csv", "p2,48,200,other", f"p9,x,{SECRET},worse")
    shared.edit("vitals.csv", "p1,24,120", "p1,,fast")
    shared.edit("labs.csv", "350", "x")
    places = [(Path(one.file).name, one.place) for one in shared.problems()]
    assert places == [
        ("labs.csv", "column serum_chol, line 2"),
        ("vitals.csv", "column patient, line 2"),
        ("vitals.csv", "column hour, line 3"),
        ("vitals.csv", "column hr, line 3"),
    ]
    shared.edit("vitals.csv", "p9,x", "p2,x")
    assert [one.place for one in shared.problems()[1:]] == [
        "column hour, line 2",
        "column hour, line 3",
        "column hr, line 2",
        "column hr, line 3",
        "column rhythm, line 2",
    ]


def test_an_unreadable_patients_file_hides_no_problem_of_rows(shared: SiteFolder) -> None:
    shared.write("patients.csv", "patient\np1\n")
    shared.edit("vitals.csv", "p4,0,40", "p4,0,4")
    assert any(problem.place == "column hr, line 5" for problem in shared.problems())


def test_rows_of_other_splits_are_not_looked_into(shared: SiteFolder) -> None:
    shared.edit("vitals.csv", "p4,0", "p4,x")  # p4 is a test patient
    assert shared.problems(("train", "validation")) == ()
    assert [problem.place for problem in shared.problems(("test",))] == ["column hour, line 5"]


@pytest.mark.parametrize("rows", ["p1,0,1\np2,1e-100,1\np4,1,1\n", "p1,0,0\np2,0,1e-100\np4,0,1\n"])
def test_a_time_or_value_too_far_from_the_fitted_scale_is_refused(site: SiteFolder, rows: str) -> None:
    add_vitals(site, LOCAL, LOCAL_ENTRY.replace('0, "?"', '"?"'))
    site.write("vitals.csv", f"patient,hour,hr\n{rows}")
    assert [(one.place, one.what) for one in site.problems()] == [
        ("line 4", "has a value that is too large to be a measurement")
    ]


def test_a_local_encoder_without_columns_is_the_manifests_problem(site: SiteFolder) -> None:
    add_vitals(site, LOCAL, LOCAL_ENTRY[: LOCAL_ENTRY.index("[[modality.column]]")])
    assert [problem.place for problem in site.problems()] == ["modality.vitals.column"]


def test_the_cache_follows_the_rows(shared: SiteFolder, tmp_path: Path) -> None:
    kept = tmp_path / "cache"
    first = load_site(shared.path, shared.study(), ("train",), kept)
    again = load_site(shared.path, shared.study(), ("train",), kept)
    assert again.preprocessing == first.preprocessing
    assert torch.equal(again.cohorts["train"].inputs["vitals"], first.cohorts["train"].inputs["vitals"])
    shared.edit("vitals.csv", "p2,48", "p2,0")
    changed = load_site(shared.path, shared.study(), ("train",), kept)
    assert changed.cohorts["train"].inputs["vitals"][1, 0, 1] == -2


@pytest.mark.parametrize(("declaration", "entry", "channels"), [(SHARED, ENTRY, 8), (LOCAL, LOCAL_ENTRY, 5)])
def test_a_bundle_keeps_what_made_the_inputs(
    site: SiteFolder, tmp_path: Path, declaration: str, entry: str, channels: int
) -> None:
    add_vitals(site, declaration, entry)
    one = make_cpu_site(site.path, tmp_path / "state")
    coordinator = coordinate(site.study(), one)
    one.train(coordinator.train())
    one.finish(coordinator.finish(1))
    (folder,) = tmp_path.glob("state/**/bundle")
    bundle = read_bundle(folder)
    assert bundle.facts.preprocessing == site.read().preprocessing
    assert [one.shape for one in bundle.facts.inputs] == [(5,), (2,), (5,), (3, channels)]
    assert "vitals" not in bundle.effect.slopes_FY  # a site's own regression takes rows of numbers only


def test_check_counts_who_has_a_row_with_a_value(shared: SiteFolder) -> None:
    result = check_site(shared.path)
    assert result.problems == ()
    assert result.coverage["train"].modalities["vitals"] == 2


CELLS = st.sampled_from(["", "?", "0", "1", "12", "nan", "inf", "-1e400", "1e12", "S", "other", '"', "x", "0x1", "é"])
IDS = st.sampled_from(["p1", "p2", "p3", "p4", "p6", "", "p9"])


@given(st.lists(st.tuples(IDS, CELLS, CELLS, CELLS), max_size=6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_rows_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str, str]], local: bool
) -> None:
    """Nothing but InputError may come of any cells, and what is read is finite and padded at the end."""
    site = make_site(tmp_path_factory.mktemp("fuzz") / "site")
    add_vitals(site, *((LOCAL, LOCAL_ENTRY) if local else (SHARED, ENTRY)))
    site.write("vitals.csv", "patient,hour,hr,rhythm\n" + "".join(",".join(row) + "\n" for row in rows))
    problems = site.problems()
    assert all(isinstance(problem, Problem) and problem.remedy for problem in problems)
    for cohort in site.read().cohorts.values() if not problems else ():
        x_BTC = cohort.inputs["vitals"]
        assert x_BTC.isfinite().all()
        assert torch.equal(x_BTC[:, 0, 0] == 1, cohort.observed_BM[:, 3])
        assert (x_BTC[:, :, 0].diff(dim=1) <= 0).all()
        assert (x_BTC[:, 1:, 2] >= 0).all()


def test_the_columns_are_those_of_the_study(shared: SiteFolder) -> None:
    found = shared.read().preprocessing["vitals"]
    assert found == SequencePreprocessing(
        columns=(
            NumericColumn(name="heart_rate", unit="/min", range=(40, 200)),
            CategoricalColumn(name="rhythm", categories=("sinus", "other")),
        ),
        time=NumericColumn(name="time", unit="hours", range=(0, 48)),
        longest=3,
    )
