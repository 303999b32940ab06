from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from client.bundle import BundleFacts
from client.modality_entry import OTHER_SCALE
from client.new_patients import NewPatients, read_folder
from client.patients import SPLITS
from client.site_model import site_inputs
from flexmoe_core.cohort import UNKNOWN_LABEL
from flexmoe_core.errors import InputError, Problem
from tests.client import test_embedding, test_sequence, test_volume
from tests.client.conftest import SiteFolder, make_site
from tests.client.coordinator import coordinate, make_cpu_site
from tests.client.local_site import COHORT, SCALES, write_local_site

SECRET = "87310"
PUBLIC = "[public]\npatients = 6\nfull_modality = true\n"
VOLUME_COLUMN = """[[modality.column]]
name = "volume"
type = "numeric"
unit = "ml"
column = "vol"
missing = [-1]
"""
DEVICE_COLUMN = """[[modality.column]]
name = "device"
type = "categorical"
categories = ["A", "B"]
"""
SCAN_COLUMNS = VOLUME_COLUMN + DEVICE_COLUMN
Change = Callable[[SiteFolder], object]


def facts_of(site: SiteFolder) -> BundleFacts:
    """What a bundle would say that this site had written."""
    coordinator = coordinate(site.study(), make_cpu_site(site.path, site.path.parent / "state"))
    data = site.read(("train",))
    return BundleFacts(
        site=data.name,
        terms=coordinator.terms,
        table=coordinator.table,
        inputs=site_inputs(coordinator.terms, data),
        prior=(0.5, 0.5),
        rounds=1,
        preprocessing=dict(data.preprocessing),
    )


@pytest.fixture
def facts(tmp_path: Path) -> BundleFacts:
    """Of the good folder, which a test is then free to change."""
    (tmp_path / "trained").mkdir()
    return facts_of(make_site(tmp_path / "trained" / "cleveland"))


def problems(site: SiteFolder, facts: BundleFacts, split: str | None = None) -> tuple[Problem, ...]:
    with pytest.raises(InputError) as caught:
        read_folder(site.path, facts, split)
    return caught.value.problems


def require_equal_inputs(patients: NewPatients, site: SiteFolder) -> None:
    """The patients' tensors are those that training makes of the same folder."""
    data, places = site.read(), {patient: place for place, patient in enumerate(patients.ids)}
    assert sorted(places) == sorted(patient for ids in data.ids.values() for patient in ids)
    for split, cohort in data.cohorts.items():
        found = patients.cohort.select(torch.tensor([places[patient] for patient in data.ids[split]]))
        assert torch.equal(found.observed_BM, cohort.observed_BM)
        assert found.inputs.keys() == cohort.inputs.keys()
        for name, x_BF in cohort.inputs.items():
            assert torch.equal(found.inputs[name], x_BF), name


def test_all_patients_come_in_file_order_and_nobody_has_a_label(site: SiteFolder, facts: BundleFacts) -> None:
    patients = read_folder(site.path, facts)
    assert (patients.id_column, patients.ids) == ("patient", ("p1", "p2", "p3", "p4", "p5", "p6"))
    assert patients.cohort.labels_B.tolist() == [UNKNOWN_LABEL] * 6
    assert {file.name for file in patients.files} == {"patients.csv", "history.csv", "labs.csv", "scan.parquet"}
    require_equal_inputs(patients, site)


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_is_those_patients_alone(site: SiteFolder, facts: BundleFacts, split: str) -> None:
    data = site.read()
    site.edit("history.csv", "80,M" if split == "test" else "100,F", f"{SECRET},M")  # of another split
    patients = read_folder(site.path, facts, split)
    assert patients.ids == data.ids[split]
    assert torch.equal(patients.cohort.masks_B, data.cohorts[split].masks_B)


@pytest.mark.parametrize("kind", ["embedding", "volume", "sequence"])
@pytest.mark.parametrize("encoder", ["shared", "local"])
def test_every_kind_is_encoded_as_in_training(site: SiteFolder, kind: str, encoder: str) -> None:
    local = encoder == "local"
    match kind:
        case "embedding":
            test_embedding.add_text(site, test_embedding.LOCAL if local else test_embedding.SHARED)
            test_embedding.save(site)
        case "volume":
            keys = "shape = [8, 9, 10]\n" if local else ""
            test_volume.add_images(site, test_volume.LOCAL if local else test_volume.SHARED, keys)
        case "sequence":
            declaration = test_sequence.LOCAL if local else test_sequence.SHARED
            test_sequence.add_vitals(site, declaration, test_sequence.LOCAL_ENTRY if local else test_sequence.ENTRY)
    facts = facts_of(site)
    require_equal_inputs(read_folder(site.path, facts), site)
    without_split = (site / "patients.csv").read_text().replace(",split", ",part")
    data = site.read()
    site.write("patients.csv", without_split)
    patients = read_folder(site.path, facts)
    assert patients.cohort.observed_BM.sum() == sum(one.observed_BM.sum() for one in data.cohorts.values())


@pytest.mark.parametrize("repeated", [True, False])
def test_declared_scales_are_those_of_the_bundle(tmp_path: Path, repeated: bool) -> None:
    own, new = (write_local_site(tmp_path / name, COHORT) for name in ("own", "new"))
    for line in () if repeated else SCALES.values():
        new.edit("site.toml", line, "")
    require_equal_inputs(read_folder(new.path, facts_of(own)), own)


TYPICAL = "\ntypical = [10, 60]\n"


def test_typical_limits_are_those_of_the_bundle(tmp_path: Path) -> None:
    own, silent, other = (write_local_site(tmp_path / name, COHORT) for name in ("own", "silent", "other"))
    line = SCALES["modality.scan.column.volume.range"]
    plain = own.read().cohorts["train"].inputs["scan"]
    own.edit("site.toml", line, line + TYPICAL)
    assert not torch.equal(own.read().cohorts["train"].inputs["scan"], plain)
    require_equal_inputs(read_folder(silent.path, facts_of(own)), own)
    other.edit("site.toml", line, line + TYPICAL.replace("60", "70"))
    found = problems(other, facts_of(own))
    assert [(one.place, one.what) for one in found] == [("modality.scan.column.volume.typical", OTHER_SCALE.what)]


@pytest.mark.parametrize("place", SCALES)
def test_another_scale_than_the_bundles_is_refused(tmp_path: Path, place: str) -> None:
    own = write_local_site(tmp_path / "own", COHORT)
    facts = facts_of(own)
    own.edit("site.toml", SCALES[place], SCALES[place].replace("]", "0]"))
    assert [(one.place, one.what) for one in problems(own, facts)] == [(place, OTHER_SCALE.what)]


def test_scales_are_the_bundles_however_few_the_patients(site: SiteFolder, facts: BundleFacts) -> None:
    site.write("patients.csv", "patient\np3\n")
    for name in ("history.csv", "labs.csv"):
        lines = (site / name).read_text().splitlines()
        site.write(name, "\n".join([lines[0], *(line for line in lines[1:] if "p3" in line)]) + "\n")
    pd.DataFrame({"patient": ["p3"], "vol": [1000.0], "device": ["B"]}).to_parquet(site / "scan.parquet")
    cohort = read_folder(site.path, facts).cohort
    assert cohort.masks_B.tolist() == [0b101]
    assert cohort.inputs["scan"].tolist() == [[98, 0, 0, 1, 0]]  # (1000 - 20) / 10: training values 10 and 30


def test_files_may_be_without_any_value(site: SiteFolder, facts: BundleFacts) -> None:
    site.write("history.csv", "patient,age,gender\n")
    site.write("labs.csv", "patient,serum_chol\np1,?\n")
    pd.DataFrame({"patient": ["p1"], "vol": [None], "device": [None]}).to_parquet(site / "scan.parquet")
    assert read_folder(site.path, facts).cohort.masks_B.tolist() == [0] * 6


@pytest.mark.parametrize("kind", ["embedding", "volume", "sequence"])
def test_every_kind_may_be_without_any_patient(site: SiteFolder, kind: str) -> None:
    match kind:
        case "embedding":
            test_embedding.add_text(site, test_embedding.LOCAL)
            test_embedding.save(site)
        case "volume":
            test_volume.add_images(site, test_volume.LOCAL, "shape = [8, 9, 10]\n")
        case "sequence":
            test_sequence.add_vitals(site, test_sequence.LOCAL, test_sequence.LOCAL_ENTRY)
    facts = facts_of(site)
    test_embedding.save(site, np.array([], dtype=str), np.zeros((0, 3)))
    site.write("images.csv", "patient,path\n")
    site.write("vitals.csv", "patient,hour,hr\n")
    assert read_folder(site.path, facts).cohort.masks_B.tolist() == [0b111, 0b101, 0b101, 0b011, 0b001, 0]


def test_labels_splits_and_public_facts_are_not_needed(site: SiteFolder, facts: BundleFacts) -> None:
    expected = read_folder(site.path, facts).cohort
    site.edit("site.toml", PUBLIC, "")
    site.write("patients.csv", "patient\n" + "".join(f"p{place}\n" for place in range(1, 7)))
    assert torch.equal(read_folder(site.path, facts).cohort.masks_B, expected.masks_B)


@pytest.mark.parametrize("label", [SECRET, "", "nan"])
def test_labels_are_never_read(site: SiteFolder, facts: BundleFacts, label: str) -> None:
    site.edit("patients.csv", "p4,present", f"p4,{label}")
    site.edit("patients.csv", "p1,absent,train", f"p1,{label},{SECRET}")
    assert read_folder(site.path, facts).ids[3] == "p4"


def test_a_folder_with_fewer_modalities_has_patients_who_lack_them(site: SiteFolder, facts: BundleFacts) -> None:
    text = (site / "site.toml").read_text()
    site.write("site.toml", text[: text.index('[[modality]]\nname = "labs"')])  # public.full_modality stays true
    cohort = read_folder(site.path, facts).cohort
    assert cohort.masks_B.tolist() == [0b001] * 5 + [0]
    assert {name: tuple(x_BF.shape) for name, x_BF in cohort.inputs.items()} == {
        "history": (6, 5),
        "labs": (6, 2),
        "scan": (6, 5),
    }


def test_columns_of_a_local_encoder_need_not_be_repeated(site: SiteFolder, facts: BundleFacts) -> None:
    expected = read_folder(site.path, facts).cohort.inputs["scan"]
    site.edit("site.toml", SCAN_COLUMNS, "")
    site.scans()
    (problem,) = problems(site, facts)
    assert (problem.file, problem.what) == (str(site / "scan.parquet"), "has no column 'volume'")
    site.edit("site.toml", 'file = "scan.parquet"\n', 'file = "scan.parquet"\ncolumns.volume = "vol"\n')
    assert torch.equal(read_folder(site.path, facts).cohort.inputs["scan"], expected)


def test_columns_of_a_local_encoder_may_come_in_any_order(site: SiteFolder, facts: BundleFacts) -> None:
    expected = read_folder(site.path, facts).cohort.inputs["scan"]
    site.edit("site.toml", SCAN_COLUMNS, DEVICE_COLUMN.replace('"A", "B"', '"B", "A"') + VOLUME_COLUMN)
    assert torch.equal(read_folder(site.path, facts).cohort.inputs["scan"], expected)


def edit(name: str, old: str, new: str) -> Change:
    return lambda site: site.edit(name, old, new)


VOLUME = "modality.scan.column.volume"
WRONG: dict[str, tuple[Change, str, str, str]] = {
    "another unit": (edit("site.toml", '"ml"', '"l"'), "site.toml", f"{VOLUME}.unit", "is not the unit that"),
    "no unit": (edit("site.toml", 'unit = "ml"', ""), "site.toml", f"{VOLUME}.unit", "is not the unit that"),
    "another scale": (
        edit("site.toml", 'unit = "ml"', 'unit = "ml"\nrange = [0, 50]'),
        "site.toml",
        f"{VOLUME}.range",
        "is not the scale that the bundle was made with",
    ),
    "a local value outside the declared range": (
        edit("site.toml", 'unit = "ml"', 'unit = "ml"\nrange = [0, 40]'),
        "scan.parquet",
        "column vol, row 3",
        "is outside the plausible range 0 to 40 ml",
    ),
    "another type": (
        edit("site.toml", 'type = "categorical"\ncategories = ["A", "B"]', 'type = "numeric"'),
        "site.toml",
        "modality.scan.column.device.type",
        "is numeric, but categorical in the bundle",
    ),
    "another category": (
        edit("site.toml", '["A", "B"]', '["A", "B", "C"]'),
        "site.toml",
        "modality.scan.column.device.categories",
        "are not those",
    ),
    "a column is absent": (
        edit("site.toml", DEVICE_COLUMN, ""),
        "site.toml",
        "modality.scan.column.device",
        "is missing",
    ),
    "an unknown column": (
        edit("site.toml", 'name = "device"', 'name = "devices"'),
        "site.toml",
        "modality.scan.column.devices",
        "is not a column of the bundle",
    ),
    "an unknown mapping": (
        edit("site.toml", SCAN_COLUMNS, '[modality.columns]\nvol = "vol"\n'),
        "site.toml",
        "modality.scan.columns.vol",
        "is not a column of the bundle",
    ),
    "columns of a shared encoder": (
        edit("site.toml", 'chol = "serum_chol"', '[[modality.column]]\nname = "chol"\ntype = "numeric"'),
        "site.toml",
        "modality.labs.column",
        "defines columns that the study already defines",
    ),
    "an unknown modality": (edit("site.toml", '"labs"', '"lab"'), "site.toml", "modality.lab", "not a modality of"),
    "another study": (edit("study.toml", "600]", "900]"), "study.toml", "modality.labs", "not declared as in"),
    "a study that cannot be read": (edit("study.toml", "600]", "600"), "study.toml", "line 29, column 1", "TOML"),
    "a column of the table is absent": (
        edit("labs.csv", "serum_chol", "chol"),
        "labs.csv",
        "",
        "no column 'serum_chol'",
    ),
    "no ids": (edit("patients.csv", "patient,", "person,"), "patients.csv", "", "no column 'patient'"),
    "nobody": (lambda site: site.write("patients.csv", "patient\n"), "patients.csv", "", "has no patient"),
    "an id twice": (edit("patients.csv", "p6,", "p1,"), "patients.csv", "column patient, line 7", "repeats an"),
    "no id": (edit("patients.csv", "p6,", ","), "patients.csv", "column patient, line 7", "has no patient id"),
    "no such file": (lambda site: (site / "labs.csv").unlink(), "site.toml", "modality.labs.file", "names no file"),
    "an implausible value": (
        edit("labs.csv", "600", SECRET),
        "labs.csv",
        "column serum_chol, line 4",
        "is outside the plausible range",
    ),
    "an unknown category": (
        edit("history.csv", "80,M", f"80,{SECRET}"),
        "history.csv",
        "column gender, line 6",
        "no",
    ),
    "an unknown patient": (edit("labs.csv", "p4", SECRET), "labs.csv", "column patient, line 4", "is no patient"),
    "an absurd local value": (
        lambda site: site.scans(vol=[1.0, 2.0, 1e13]),
        "scan.parquet",
        "column vol, row 3",
        "is too large",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_with_its_place(site: SiteFolder, facts: BundleFacts, name: str) -> None:
    change, file, place, what = WRONG[name]
    change(site)
    found = problems(site, facts)
    told = [one for one in found if one.file == str(site / file) and one.place == place and what in one.what]
    assert len(told) == 1, found
    assert told[0].remedy
    assert not any(SECRET in str(problem) for problem in found)


def test_problems_of_all_files_come_at_once(site: SiteFolder, facts: BundleFacts) -> None:
    for name in ("another unit", "an id twice", "an implausible value", "an unknown category"):
        WRONG[name][0](site)
    files = [problem.file.rpartition("/")[2] for problem in problems(site, facts)]
    assert files == ["site.toml", "patients.csv", "history.csv", "labs.csv"]


def test_a_split_needs_its_column_and_patients(site: SiteFolder, facts: BundleFacts) -> None:
    site.edit("patients.csv", "p3,absent,validation", "p3,absent,train")
    (problem,) = problems(site, facts, "validation")
    assert problem.what == "has no patient of the split 'validation'"
    site.edit("patients.csv", "p3,absent,train", "p3,absent,valid")
    (problem,) = problems(site, facts, "validation")
    assert problem.place == "column split, line 4"
    site.edit("patients.csv", "split", "part")
    (problem,) = problems(site, facts, "validation")
    assert problem.what == "has no column 'split'"
    assert "leave out --split" in problem.remedy


def test_a_local_modality_that_the_bundle_lacks(site: SiteFolder, facts: BundleFacts) -> None:
    known = {name: one for name, one in facts.preprocessing.items() if name != "scan"}
    (problem,) = problems(site, facts.model_copy(update={"preprocessing": known}))
    assert (problem.place, problem.what) == ("modality.scan", "has a local encoder, and none is in the bundle")


def test_local_vectors_and_volumes_must_be_those_of_the_training(site: SiteFolder) -> None:
    test_embedding.add_text(site, test_embedding.LOCAL)
    test_embedding.save(site)
    test_volume.add_images(site, test_volume.LOCAL, "shape = [8, 9, 10]\n")
    facts = facts_of(site)
    np.savez(site / "text.npz", ids=["p1"], values=np.ones((1, 2)))
    site.edit("site.toml", "shape = [8, 9, 10]", "shape = [8, 9, 9]")
    shape, text = problems(site, facts)
    assert (shape.place, shape.what) == ("modality.image.shape", "is not that of the bundle: 8 x 9 x 10")
    assert (text.file, text.what) == (
        str(site / "text.npz"),
        "has vectors of 2 numbers, the bundle was made with 3",
    )
    site.edit("site.toml", "shape = [8, 9, 9]", "")
    test_embedding.save(site)
    cohort = read_folder(site.path, facts).cohort
    assert cohort.observed_BM[:, 3:].sum(dim=0).tolist() == [3, 3]
