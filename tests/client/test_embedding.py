import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, DTypeLike

from client.arrays import read_npz
from client.bundle import read_bundle
from client.cache import load_site
from client.check import check_site
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.modalities.embedding import EmbeddingPreprocessing
from tests.client.conftest import SiteFolder
from tests.client.coordinator import coordinate, make_cpu_site

SECRET = 87310.0
SHARED = '[[modality]]\nname = "text"\nkind = "embedding"\nencoder = "shared"\nsize = 3\nrange = [0, 8]\n'
LOCAL = '[[modality]]\nname = "text"\nkind = "embedding"\nencoder = "local"\n'
IDS = ["p1", "p2", "p3", "p4"]
VALUES = np.array([[0, 4, 8], [2, 2, 2], [math.nan] * 3, [16, 4, 4]], dtype=np.float32)


def add_text(site: SiteFolder, declaration: str = SHARED, file: str = "text.npz") -> SiteFolder:
    """The good folder with a fourth modality."""
    site.write("study.toml", (site / "study.toml").read_text() + declaration)
    site.write("site.toml", (site / "site.toml").read_text() + f'[[modality]]\nname = "text"\nfile = "{file}"\n')
    return site


def save(site: SiteFolder, ids: ArrayLike = IDS, values: ArrayLike = VALUES) -> None:
    np.savez(site / "text.npz", ids=ids, values=values)


@pytest.fixture
def shared(site: SiteFolder) -> SiteFolder:
    add_text(site)
    save(site)
    return site


def test_vectors_are_read_by_id_on_the_scale_of_the_study(shared: SiteFolder) -> None:
    data = shared.read()
    assert data.shapes["text"] == (3,)
    assert data.preprocessing["text"] == EmbeddingPreprocessing(ranges=((0, 8),) * 3)
    train, validation, test = data.cohorts.values()
    assert train.inputs["text"].dtype == torch.float32
    assert train.inputs["text"].tolist() == [[-2, 0, 2], [-1, -1, -1], [0, 0, 0]]  # p1, p2; p5 has no row
    assert train.observed_BM[:, 3].tolist() == [True, True, False]
    assert validation.inputs["text"].tolist() == [[0, 0, 0]]  # p3's vector is all NaN
    assert not validation.observed_BM[0, 3]
    assert test.inputs["text"].tolist() == [[6, 0, 0], [0, 0, 0]]  # beyond the range, and not clipped


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4", np.longdouble])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_floating_point_numbers_will_do(shared: SiteFolder, dtype: DTypeLike, order: Literal["C", "F"]) -> None:
    good = shared.read(("train",)).cohorts["train"].inputs["text"]
    save(shared, [f" {name} " for name in IDS], np.asarray(VALUES, dtype=dtype, order=order))
    assert torch.equal(shared.read(("train",)).cohorts["train"].inputs["text"], good)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_of_nothing_but_ids_and_numbers_says_the_same(shared: SiteFolder, suffix: str) -> None:
    good = shared.read()
    shared.edit("site.toml", "text.npz", f"text.{suffix}")
    table = pd.DataFrame(VALUES[:, :2], columns=["z", "a"]).assign(patient=IDS, m=VALUES[:, 2])
    if suffix == "csv":
        table.to_csv(shared / "text.csv", index=False)
    else:
        table.to_parquet(shared / "text.parquet")
    for split, cohort in shared.read().cohorts.items():
        assert torch.equal(cohort.inputs["text"], good.cohorts[split].inputs["text"])
        assert torch.equal(cohort.observed_BM, good.cohorts[split].observed_BM)


def test_a_local_encoder_has_the_size_and_scale_of_the_site(site: SiteFolder) -> None:
    save(add_text(site, LOCAL))
    data = site.read(("train", "test"))
    assert data.shapes["text"] == (3,)
    assert data.cohorts["train"].inputs["text"].tolist() == [[-1, 1, 1], [1, -1, -1], [0, 0, 0]]
    assert data.cohorts["test"].inputs["text"].tolist() == [[15, 1, pytest.approx(-1 / 3)], [0, 0, 0]]
    assert site.read(("validation",)).preprocessing == data.preprocessing


def test_a_shared_modality_that_the_site_lacks_has_inputs_for_nobody(site: SiteFolder) -> None:
    site.write("study.toml", (site / "study.toml").read_text() + SHARED)
    site.edit("site.toml", "full_modality = true", "full_modality = false")
    cohort = site.read(("train",)).cohorts["train"]
    assert torch.equal(cohort.inputs["text"], torch.zeros(3, 3))
    assert not cohort.observed_BM[:, 3].any()


def change(place: tuple[int, int] | int, value: float) -> Callable[[SiteFolder], None]:
    def break_it(site: SiteFolder) -> None:
        values = VALUES.astype(np.float64)
        values[place] = value
        save(site, IDS, values)

    return break_it


def drop(site: SiteFolder) -> None:
    np.savez(site / "text.npz", text=VALUES)


def truncate(site: SiteFolder) -> None:
    (site / "text.npz").write_bytes((site / "text.npz").read_bytes()[:-40])


def as_table(header: str, row: str = "p1,1,2,3") -> Callable[[SiteFolder], None]:
    def break_it(site: SiteFolder) -> None:
        site.edit("site.toml", "text.npz", "text.csv")
        site.write("text.csv", f"{header}\n{row}\n")

    return break_it


def rename(name: str) -> Callable[[SiteFolder], None]:
    return lambda site: site.edit("site.toml", "text.npz", name)


def in_patients_file(site: SiteFolder) -> None:
    site.edit("site.toml", "text.npz", "patients.csv")


def objects(site: SiteFolder) -> None:
    save(site, np.array([*IDS[:3], 4], dtype=object))


STRUCTURED = np.zeros(4, dtype=[("id", "U2")])
BROKEN: dict[str, tuple[Callable[[SiteFolder], None], str, str, str]] = {
    "size": (lambda site: save(site, IDS, VALUES[:, :2]), "text.npz", "", "vectors of 2 numbers, the study's have 3"),
    "no size": (lambda site: save(site, IDS, VALUES[:, :0]), "text.npz", "", "vectors of 0 numbers"),
    "flat": (lambda site: save(site, IDS, VALUES[:, 0]), "text.npz", "arrays ids and values", "(4,) and (4,)"),
    "scalar ids": (lambda site: save(site, "p1"), "text.npz", "arrays ids and values", "() and (4, 3)"),
    "fewer ids": (lambda site: save(site, IDS[:3]), "text.npz", "arrays ids and values", "(3,) and (4, 3)"),
    "whole numbers": (lambda site: save(site, IDS, np.ones((4, 3), int)), "text.npz", "array values", "floating"),
    "text": (lambda site: save(site, IDS, np.full((4, 3), "1.5")), "text.npz", "array values", "floating-point"),
    "complex": (lambda site: save(site, IDS, np.ones((4, 3), complex)), "text.npz", "array values", "floating"),
    "ids of numbers": (lambda site: save(site, [1, 2, 3, 4]), "text.npz", "array ids", "is not of text"),
    "ids of bytes": (lambda site: save(site, np.array(IDS, "S")), "text.npz", "array ids", "is not of text"),
    "structured ids": (lambda site: save(site, STRUCTURED), "text.npz", "array ids", "is not of text"),
    "objects": (objects, "text.npz", "array ids", "Python objects"),
    "patient twice": (lambda site: save(site, ["p1", "p1", "p3", "p4"]), "text.npz", "array ids, row 2", "repeats"),
    "no id": (lambda site: save(site, ["p1", " ", "p3", "p4"]), "text.npz", "array ids, row 2", "no patient id"),
    "stranger": (lambda site: save(site, ["p1", "p9", "p3", "p4"]), "text.npz", "array ids, row 2", "is no patient"),
    "partly missing": (change((1, 2), math.nan), "text.npz", "row 2", "partly missing"),
    "infinite": (change((1, 2), -math.inf), "text.npz", "row 2", "infinite"),
    "too large": (change((1, 2), 1e13), "text.npz", "row 2", "too large"),
    "nobody": (lambda site: save(site, np.empty(0, "U2"), VALUES[:0]), "text.npz", "", "has no rows"),
    "nothing": (lambda site: save(site, IDS, VALUES * math.nan), "text.npz", "", "no value in any row"),
    "truncated": (truncate, "text.npz", "", "cannot be read as .npz"),
    "no archive": (lambda site: site.write("text.npz", f"{SECRET}"), "text.npz", "", "cannot be read as .npz"),
    "empty file": (lambda site: site.write("text.npz", ""), "text.npz", "", "cannot be read as .npz"),
    "absent": (lambda site: (site / "text.npz").unlink(), "site.toml", "modality.text.file", "names no file"),
    "outside": (rename("../text.npz"), "site.toml", "modality.text.file", "outside the site folder"),
    "other format": (rename("site.toml"), "site.toml", "", "is neither .npz nor .csv nor .parquet"),
    "unknown key": (
        lambda site: site.edit("site.toml", '"text.npz"', '"text.npz"\nmising = ["?"]'),
        "site.toml",
        "modality.text.mising",
        "is not a known key",
    ),
    "table without ids": (as_table("id,a,b,c"), "text.csv", "", "has no column 'patient'"),
    "table with an index": (as_table(",patient,a,b", "0,p1,1,2"), "text.csv", "header", "without a name"),
    "table with labels": (as_table("patient,a,b,disease"), "text.csv", "", "has the column 'disease'"),
    "table of words": (as_table("patient,a,b,c", "p1,1,2,x"), "text.csv", "column c, line 2", "is not a number"),
    "table of infinity": (as_table("patient,a,b,c", "p1,1,2,-inf"), "text.csv", "line 2", "infinite"),
    "partly empty line": (as_table("patient,a,b,c", "p1,1,2,"), "text.csv", "line 2", "partly missing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_fault_is_one_problem_with_its_place_and_remedy(shared: SiteFolder, name: str) -> None:
    break_it, file, place, what = BROKEN[name]
    break_it(shared)
    (problem,) = shared.problems()
    assert (problem.file, problem.place) == (str(shared / file), place)
    assert what in problem.what
    assert problem.remedy
    assert str(SECRET) not in str(problem)


def test_all_problems_come_at_once(shared: SiteFolder) -> None:
    values = VALUES.astype(np.float64)
    values[0, 0], values[1, 0], values[3, 1] = math.inf, math.nan, -SECRET * 1e12
    save(shared, ["p1", "p1", "p3", "p9"], values)
    shared.edit("labs.csv", "350", "x")
    places = [(Path(one.file).name, one.place) for one in shared.problems()]
    assert places == [
        ("labs.csv", "column serum_chol, line 2"),
        ("text.npz", "array ids, row 2"),
        ("text.npz", "array ids, row 4"),
        ("text.npz", "row 1"),
    ]
    drop(shared)
    assert [one.what for one in shared.problems()[1:]] == ["has no array 'ids'", "has no array 'values'"]
    shared.edit("site.toml", 'id = "patient"', "")
    shared.edit("site.toml", '"text.npz"', "3")
    assert [one.place for one in shared.problems()] == ["site.id", "modality.text.file"]


def test_the_patients_file_holds_no_vectors(shared: SiteFolder) -> None:
    in_patients_file(shared)
    found = [problem.what for problem in shared.problems()]
    assert len(found) == 2
    assert all("called as the label or split" in what for what in found)


def test_an_unreadable_patients_file_hides_no_problem_of_vectors(shared: SiteFolder) -> None:
    shared.write("patients.csv", "patient\np1\n")
    change((1, 2), math.nan)(shared)
    assert any(problem.place == "row 2" for problem in shared.problems())


def test_vectors_of_other_splits_are_not_looked_into(shared: SiteFolder) -> None:
    change((3, 1), math.inf)(shared)  # p4 is a test patient
    assert shared.problems(("train", "validation")) == ()
    assert [problem.place for problem in shared.problems(("test",))] == ["row 4"]


def test_a_value_too_far_from_the_fitted_scale_is_refused(site: SiteFolder) -> None:
    add_text(site, LOCAL)
    save(site, ["p1", "p2", "p4"], np.array([[0.0], [1e-100], [1.0]]))
    assert [(problem.place, problem.what) for problem in site.problems()] == [
        ("row 3", "has a vector with a number too large to be meant")
    ]


def test_the_cache_follows_the_vectors(shared: SiteFolder, tmp_path: Path) -> None:
    kept = tmp_path / "cache"
    first = load_site(shared.path, shared.study(), ("train",), kept)
    again = load_site(shared.path, shared.study(), ("train",), kept)
    assert again.preprocessing == first.preprocessing
    assert torch.equal(again.cohorts["train"].inputs["text"], first.cohorts["train"].inputs["text"])
    change((0, 0), 8.0)(shared)
    changed = load_site(shared.path, shared.study(), ("train",), kept)
    assert changed.cohorts["train"].inputs["text"][0].tolist() == [2, 0, 2]


@pytest.mark.parametrize("declaration", [SHARED, LOCAL])
def test_a_bundle_keeps_what_made_the_inputs(site: SiteFolder, tmp_path: Path, declaration: str) -> None:
    save(add_text(site, declaration))
    one = make_cpu_site(site.path, tmp_path / "state")
    coordinator = coordinate(site.study(), one)
    one.train(coordinator.train())
    one.finish(coordinator.finish(1))
    (folder,) = tmp_path.glob("state/**/bundle")
    bundle = read_bundle(folder)
    assert bundle.facts.preprocessing == site.read().preprocessing
    assert [one.shape for one in bundle.facts.inputs] == [(5,), (2,), (5,), (3,)]
    assert bundle.effect.slopes_FY["text"].shape == (3, 2)


def test_check_counts_vectors(shared: SiteFolder) -> None:
    result = check_site(shared.path)
    assert result.problems == ()
    assert result.coverage["train"].modalities["text"] == 2


def archive() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, ids=np.array(IDS), values=VALUES)
    return stream.getvalue()


def refused_or_read(path: Path) -> None:
    """Nothing but InputError may come of any bytes."""
    try:
        read_npz(path, "text.npz", ("ids", "values"))
    except InputError as error:
        assert all(isinstance(problem, Problem) and problem.remedy for problem in error.problems)


@given(st.lists(st.tuples(st.integers(0, len(archive()) - 1), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_changed_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, changes: list[Any]) -> None:
    data = bytearray(archive())
    for place, byte in changes:
        data[place] = byte
    path = tmp_path_factory.mktemp("fuzz") / "text.npz"
    path.write_bytes(data)
    refused_or_read(path)


@given(
    st.binary(max_size=60)
    | st.builds(
        lambda head, body: b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + body,
        st.text("{}'():, descrfotanhpu<f4U80123456789-\\TrueFals", max_size=70)
        | st.sampled_from(
            [
                "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 9), }",
                "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2), }",
                "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
                "{'descr': '<U0', 'fortran_order': True, 'shape': (3,), }",
            ]
        ),
        st.binary(max_size=40),
    )
)
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_any_array_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, member: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "text.npz"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("ids.npy", member)
        made.writestr("values.npy", member)
    refused_or_read(path)
