"""What a patient's tensors may depend on where the site's model is private for each patient."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from client import cache
from client.cache import load_site
from client.check import check_site
from client.entries import ENTRIES, fitted_scales, read_site_manifest
from client.site_data import SiteData, read_site
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.modalities.embedding import EmbeddingPreprocessing
from flexmoe_core.modalities.sequence import SequencePreprocessing
from flexmoe_core.modalities.tabular import CategoricalColumn, NumericColumn, TabularPreprocessing
from flexmoe_core.modalities.volume import VolumePreprocessing
from tests.client.conftest import SiteFolder
from tests.client.local_site import COHORT, SCALES, write_local_site

ALL = ("train", "validation", "test")
Patients = Mapping[str, int]


@pytest.fixture
def own(tmp_path: Path) -> SiteFolder:
    return write_local_site(tmp_path / "own", COHORT)


def read_private(site: SiteFolder) -> SiteData:
    return read_site(site.path, site.study(), ALL, fitting=False)


def without(site: SiteFolder, *places: str) -> SiteFolder:
    """The folder with some scales no longer declared."""
    for place in places:
        site.edit("site.toml", SCALES[place], "")
    return site


def tensors(data: SiteData) -> dict[str, dict[str, Tensor]]:
    """By patient and by modality, with the label, the split and what is observed."""
    of_patient = {}
    for place, (split, cohort) in enumerate(data.cohorts.items()):
        for row, patient in enumerate(data.ids[split]):
            inputs = {name: x_BF[row] for name, x_BF in cohort.inputs.items()}
            facts = {"label": cohort.labels_B[row], "observed": cohort.observed_BM[row], "split": torch.tensor(place)}
            of_patient[patient] = inputs | facts
    return of_patient


def differing(one: SiteData, other: SiteData) -> set[str]:
    """What differs in patients whom both have."""
    pairs = [(mine, tensors(other).get(patient)) for patient, mine in tensors(one).items()]
    return {
        name
        for mine, theirs in pairs
        if theirs is not None
        for name in mine
        if not torch.equal(mine[name], theirs[name])
    }


def test_the_folder_has_every_kind_of_modality(own: SiteFolder) -> None:
    study = own.study()
    assert {modality.kind for modality in study.modalities} == set(ENTRIES)
    assert study.local_modalities == study.modality_names


def test_declared_scales_are_the_scales(own: SiteFolder, tmp_path: Path) -> None:
    strangers = write_local_site(tmp_path / "strangers", {f"q{number}": number for number in range(100, 117)})
    expected = {
        "scan": TabularPreprocessing(
            columns=(
                NumericColumn(name="volume", unit="ml", range=(0, 100)),
                CategoricalColumn(name="device", categories=("A", "B")),
            )
        ),
        "text": EmbeddingPreprocessing(ranges=((-3, 3),) * 5),
        "image": VolumePreprocessing(voxels=(8, 8, 8), range=(0, 8)),
        "vitals": SequencePreprocessing(
            columns=(NumericColumn(name="rate", range=(20, 250)),),
            time=NumericColumn(name="time", range=(0, 48)),
            longest=4,
        ),
    }
    assert read_private(own).preprocessing == read_private(strangers).preprocessing == expected


NEIGHBORS: dict[str, Patients] = {
    "a patient has other values": COHORT | {"p5": 1005},
    "a patient has another split": COHORT | {"p5": 1008},
    "a patient has longer sequences": COHORT | {"p0": 3},
    "a patient is absent": {patient: seed for patient, seed in COHORT.items() if patient != "p6"},
    "a patient is added": {"p99": 10} | COHORT,
    "all but one are others": {"p2": 2} | {f"q{seed}": seed for seed in range(20, 33)},
}


@pytest.mark.parametrize("name", NEIGHBORS)
def test_a_patients_tensors_depend_on_no_other_patient(own: SiteFolder, tmp_path: Path, name: str) -> None:
    changed = {patient for patient, seed in COHORT.items() if NEIGHBORS[name].get(patient, seed) != seed}
    neighbor = read_private(write_local_site(tmp_path / "neighbor", NEIGHBORS[name]))
    before, after = tensors(read_private(own)), tensors(neighbor)
    shared = (before.keys() & after.keys()) - changed
    assert shared
    for patient in shared:
        assert before[patient].keys() == after[patient].keys()
        for part, value in before[patient].items():
            assert torch.equal(value, after[patient][part]), (patient, part)
    for patient in changed & after.keys():
        assert not torch.equal(before[patient]["text"], after[patient]["text"])


def test_the_type_of_a_column_that_another_patient_changes_is_none_of_a_patients_values(own: SiteFolder) -> None:
    own.edit("site.toml", '"scan.csv"', '"scan.parquet"')
    own.edit("site.toml", '["A", "B"]', '["1", "2"]')
    whole = {"patient": list(COHORT), "volume": list(range(10)), "device": [1, 2] * 5}
    pd.DataFrame(whole).to_parquet(own / "scan.parquet")
    before = tensors(read_private(own))
    frame = pd.DataFrame(whole | {"volume": [*range(9), None], "device": [*[1, 2] * 4, 1, None]})
    assert set(frame.dtypes[1:]) == {np.dtype(float)}
    frame.to_parquet(own / "scan.parquet")
    after = tensors(read_private(own))
    equal = {patient for patient in COHORT if torch.equal(before[patient]["scan"], after[patient]["scan"])}
    assert equal == COHORT.keys() - {"p9"}


@pytest.mark.parametrize("place", SCALES)
def test_a_scale_that_is_not_declared_depends_on_other_patients(own: SiteFolder, tmp_path: Path, place: str) -> None:
    neighbor = write_local_site(tmp_path / "neighbor", COHORT | {"p99": 10})
    found = differing(without(own, place).read(), without(neighbor, place).read())
    assert found == {place.split(".")[1]}


def test_declared_scales_need_no_permission_to_fit(own: SiteFolder) -> None:
    assert not differing(own.read(), read_private(own))


def test_what_is_declared_in_part_is_fitted_to_training_patients_whatever_the_split(own: SiteFolder) -> None:
    without(own, "modality.vitals.column.rate.range")
    assert own.read(("test",)).preprocessing == own.read().preprocessing


def refusal(site: SiteFolder, kept: Path | None = None) -> tuple[Problem, ...]:
    with pytest.raises(InputError) as caught:
        load_site(site.path, site.study(), ALL, kept, fitting=False)
    return caught.value.problems


@pytest.mark.parametrize("kept", [True, False])
def test_all_scales_that_would_be_fitted_are_named(own: SiteFolder, tmp_path: Path, kept: bool) -> None:
    found = refusal(without(own, *SCALES), tmp_path / "kept" if kept else None)
    assert [problem.place for problem in found] == list(SCALES)
    assert {problem.file for problem in found} == {str(own / "site.toml")}
    assert found[0].what.endswith("fitted to patients, which patient-level privacy does not allow")
    assert found[0].remedy == "Declare range = [low, high] from knowledge, not from these patients."
    assert found[3].remedy.startswith("Declare time_range = [low, high]")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("place", SCALES)
def test_each_scale_is_needed(own: SiteFolder, place: str) -> None:
    assert [problem.place for problem in refusal(without(own, place))] == [place]


@pytest.mark.parametrize("kept", [True, False])
def test_no_patient_is_read_where_a_scale_would_be_fitted(
    own: SiteFolder, tmp_path: Path, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(own, "modality.text.range")
    study, opened, open_path = own.study(), [], Path.open

    def note(path: Path, *arguments: object, **options: object) -> object:
        opened.append(path.name)
        return open_path(path, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", note)
    with pytest.raises(InputError):
        load_site(own.path, study, ALL, tmp_path / "kept" if kept else None, fitting=False)
    assert opened == ["site.toml"]
    load_site(own.path, study, ALL, tmp_path / "kept" if kept else None)
    assert "patients.csv" in opened


def test_both_ways_share_the_cache(own: SiteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = load_site(own.path, own.study(), ALL, tmp_path)
    monkeypatch.delattr(cache, "read_site")
    assert not differing(load_site(own.path, own.study(), ALL, tmp_path, fitting=False), fresh)


def test_a_cache_of_fitted_scales_is_of_no_use(own: SiteFolder, tmp_path: Path) -> None:
    load_site(without(own, "modality.image.range").path, own.study(), ALL, tmp_path)
    assert [problem.place for problem in refusal(own, tmp_path)] == ["modality.image.range"]


def test_a_site_without_local_encoders_has_nothing_to_declare(site: SiteFolder) -> None:
    text = (site / "site.toml").read_text()
    site.write("site.toml", text[: text.index('[[modality]]\nname = "scan"')].replace("= true", "= false"))
    assert not differing(read_private(site), site.read())


def test_the_check_knows_what_is_fitted(own: SiteFolder) -> None:
    assert check_site(own.path).fitted == ()
    assert check_site(without(own, *SCALES).path).fitted == tuple(SCALES)
    assert fitted_scales(read_site_manifest(own.path, own.study()), own.study()) == tuple(SCALES)


def edit_text(site: SiteFolder, line: str) -> None:
    site.edit("site.toml", SCALES["modality.text.range"], line)


def test_an_embedding_may_declare_a_range_for_each_number(own: SiteFolder) -> None:
    edit_text(own, "ranges = [[-3, 3], [-1, 1], [0, 2], [-6, 6], [-3, 3]]\n")
    data = read_private(own)
    vectors = np.load(own / "text.npz")
    place = vectors["ids"].tolist().index(data.ids["test"][0])
    scaled = (vectors["values"][place] - [0, 0, 1, 0, 0]) / [1.5, 0.5, 0.5, 3, 1.5]
    np.testing.assert_allclose(data.cohorts["test"].inputs["text"][0], scaled, rtol=1e-6)


@pytest.mark.parametrize(
    ("place", "line", "file", "where", "what"),
    [
        (
            "scan.column.volume",
            "range = [0, 1]",
            "scan.csv",
            "column volume, ",
            "outside the plausible range 0 to 1 ml",
        ),
        ("vitals.column.rate", "range = [0, 1]", "vitals.csv", "column rate, ", "outside the plausible range 0 to 1"),
        ("vitals", "time_range = [0, 1]", "vitals.csv", "column time, ", "outside the plausible range 0 to 1"),
        ("image", "range = [9, 10]", "image.csv", "column path, ", "without any voxel in the range 9 to 10"),
        ("text", "ranges = [[0, 1]]", "text.npz", "", "has vectors of 5 numbers, but site.toml declares 1 ranges"),
        ("text", "ranges = []", "text.npz", "", "has vectors of 5 numbers, but site.toml declares 0 ranges"),
        ("text", "range = [1, 1]", "site.toml", "modality.text.range", "is empty"),
        ("text", "ranges = [[1, 2], [2, 1]]", "site.toml", "modality.text.ranges.#2", "is empty"),
        ("text", "range = [0, 1]\nranges = []", "site.toml", "modality.text.range", "cannot stand beside ranges"),
        ("image", "range = [0]", "site.toml", "modality.image.range.#2", "is missing"),
        ("vitals", 'time_range = "day"', "site.toml", "modality.vitals.time_range", "should be a list"),
    ],
)
@pytest.mark.parametrize("fitting", [True, False])
def test_declared_scales_are_held_to(
    own: SiteFolder, place: str, line: str, file: str, where: str, what: str, fitting: bool
) -> None:
    (old,) = SCALES.keys() & {f"modality.{place}.range", f"modality.{place}.time_range"}
    own.edit("site.toml", SCALES[old], f"{line}\n")
    with pytest.raises(InputError) as caught:
        read_site(own.path, own.study(), ALL, fitting=fitting)
    told = [one for one in caught.value.problems if one.place.startswith(where) and what in one.what]
    assert [one.file for one in told] == [str(own / file)]


@pytest.mark.parametrize(
    ("name", "key", "shared"),
    [
        ("text", "range", 'encoder = "shared"\nsize = 5\nrange = [-3, 3]'),
        ("image", "range", 'encoder = "shared"\nshape = [8, 8, 8]\nrange = [0, 8]'),
        ("vitals", "time_range", 'encoder = "shared"\ntime_unit = "hours"\ntime_range = [0, 48]'),
    ],
)
def test_a_shared_encoder_takes_the_studys_scale(own: SiteFolder, name: str, key: str, shared: str) -> None:
    kind = own.study().modality(name).kind
    own.edit("study.toml", f'kind = "{kind}"\nencoder = "local"', f'kind = "{kind}"\n{shared}')
    if name == "vitals":
        column = '[[modality.column]]\nname = "rate"\ntype = "numeric"\nrange = [20, 250]\n'
        own.write("study.toml", (own / "study.toml").read_text() + column)
    found = {(problem.place, problem.what) for problem in own.problems()}
    assert (f"modality.{name}.{key}", "is not allowed with a shared encoder") in found
