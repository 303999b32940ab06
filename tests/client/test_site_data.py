import os
from collections.abc import Callable

import pytest
import torch

from flexmoe_core.errors import Problem
from flexmoe_core.modalities.tabular import TabularPreprocessing
from tests.client.conftest import SiteFolder

SECRET = "87310"


def test_a_good_folder_becomes_cohorts(site: SiteFolder) -> None:
    data = site.read()
    assert (data.name, data.public.patients, data.public.full_modality) == ("cleveland", 6, True)
    assert data.modalities == ("history", "labs", "scan")
    assert data.shapes == {"history": (5,), "labs": (2,), "scan": (5,)}
    assert data.ids == {"train": ("p1", "p2", "p5"), "validation": ("p3",), "test": ("p4", "p6")}
    train = data.cohorts["train"]
    assert train.labels_B.tolist() == [0, 1, 1]
    assert train.masks_B.tolist() == [0b111, 0b101, 0b001]
    assert train.inputs["history"].tolist() == [[0, 0, 0, 1, 0], [0, 1, 1, 0, 0], [1, 0, 0, 1, 0]]
    test = data.cohorts["test"]
    assert test.masks_B.tolist() == [0b011, 0]
    assert test.inputs["labs"].tolist() == [[2, 0], [0, 0]]


def test_missing_values_reach_the_encoder_as_zero_and_flag(site: SiteFolder) -> None:
    validation = site.read().cohorts["validation"]
    assert validation.inputs["history"].tolist() == [[-2, 0, 0, 0, 1]]  # 9.0 is declared as missing sex


def test_a_row_without_any_value_is_not_observed_and_zero(site: SiteFolder) -> None:
    train = site.read().cohorts["train"]
    assert train.observed_BM[1].tolist() == [True, False, True]  # p2's only laboratory value is '?'
    assert train.inputs["labs"][1].tolist() == [0, 0]


def test_a_local_encoder_is_scaled_by_training_patients_alone(site: SiteFolder) -> None:
    data = site.read(("validation",))
    scan = data.preprocessing["scan"]
    assert isinstance(scan, TabularPreprocessing)
    assert scan.columns[0].model_dump()["range"] == (0, 40)  # training values 10 and 30, not 50
    assert data.cohorts["validation"].inputs["scan"].tolist() == [[3, 0, 0, 1, 0]]
    assert data.preprocessing == site.read(("test",)).preprocessing


def test_a_shared_modality_that_the_site_lacks_is_encoded_for_nobody(site: SiteFolder) -> None:
    site.edit("site.toml", "full_modality = true", "full_modality = false")
    site.edit("site.toml", '[[modality]]\nname = "labs"', '[[modality]]\nname = "XXX"')
    text = (site / "site.toml").read_text()
    first, _, rest = text.partition('[[modality]]\nname = "XXX"')
    site.write("site.toml", first + rest[rest.index("[[modality]]") :])
    data = site.read(("train",))
    assert data.modalities == ("history", "scan")
    assert data.shapes["labs"] == (2,)
    assert not data.cohorts["train"].observed_BM[:, 1].any()
    assert torch.equal(data.cohorts["train"].inputs["labs"], torch.zeros(3, 2))


def test_an_empty_split_is_an_empty_cohort(site: SiteFolder) -> None:
    site.edit("patients.csv", "validation", "train")
    validation = site.read(("validation",)).cohorts["validation"]
    assert len(validation) == 0
    assert validation.inputs["history"].shape == (0, 5)


def test_a_modality_may_stand_in_the_patients_file(site: SiteFolder) -> None:
    site.edit("site.toml", 'file = "labs.csv"', 'file = "patients.csv"')
    rows = (site / "patients.csv").read_text().splitlines()
    site.write("patients.csv", "\n".join([rows[0] + ",serum_chol", *(row + ",350" for row in rows[1:])]))
    assert site.read(("train",)).cohorts["train"].observed_BM[:, 1].all()


@pytest.mark.parametrize("garbage", [SECRET, "", "nan", "present,", '"\n"'])
def test_labels_of_other_splits_are_not_read(site: SiteFolder, garbage: str) -> None:
    good = site.read(("train", "validation"))
    site.edit("patients.csv", "p4,present,test", f'p4,"{garbage.replace(chr(34), "")}",test')
    assert torch.equal(site.read(("train", "validation")).cohorts["train"].labels_B, good.cohorts["train"].labels_B)
    assert [problem.place for problem in site.problems(("test",))] == ["column disease, line 5"]
    assert "test" not in site.read(("train", "validation")).cohorts


def test_values_of_other_splits_are_not_looked_into(site: SiteFolder) -> None:
    site.edit("labs.csv", "x,600,p4", f"x,{SECRET},p4")
    assert site.problems(("train", "validation")) == ()
    assert len(site.problems(("test",))) == 1


def test_an_unknown_split_is_a_programming_error(site: SiteFolder) -> None:
    with pytest.raises(ValueError, match="unknown splits"):
        site.read(("trian",))


Break = Callable[[SiteFolder], object]


def edit(name: str, old: str, new: str) -> Break:
    return lambda site: site.edit(name, old, new)


def outside_link(site: SiteFolder) -> None:
    (site / "labs.csv").rename(site.path.parent / "labs.csv")
    (site / "labs.csv").symlink_to(site.path.parent / "labs.csv")


def pipe(site: SiteFolder) -> None:
    (site / "labs.csv").unlink()
    os.mkfifo(site / "labs.csv")


def label_as_input(site: SiteFolder) -> None:
    site.edit("site.toml", '"labs.csv"', '"patients.csv"')
    site.edit("site.toml", "serum_chol", "disease")


CHOL, PATIENT = "column serum_chol", "column patient"

BROKEN: dict[str, tuple[Break, str, str, str]] = {
    "no manifest": (lambda site: (site / "site.toml").unlink(), "site.toml", "", "does not exist"),
    "modality unknown": (edit("site.toml", '"labs"', '"lab"'), "site.toml", "modality.lab", "not a modality of"),
    "column not mapped": (edit("site.toml", "chol = ", "cho1 = "), "labs.csv", "", "no column 'chol'"),
    "column absent": (edit("labs.csv", "serum_chol", "chol"), "labs.csv", "", "no column 'serum_chol'"),
    "id column absent": (edit("labs.csv", "patient", "person"), "labs.csv", "", "no column 'patient'"),
    "label column absent": (edit("patients.csv", "disease", "ill"), "patients.csv", "", "no column 'disease'"),
    "split column absent": (edit("patients.csv", "split", "part"), "patients.csv", "", "no column 'split'"),
    "header twice": (edit("labs.csv", "note", "patient"), "labs.csv", "header", "same name"),
    "file absent": (lambda site: (site / "labs.csv").unlink(), "site.toml", "modality.labs.file", "names no file"),
    "file outside": (edit("site.toml", '"labs.csv"', '"../x.csv"'), "site.toml", "modality.labs.file", "outside"),
    "link outside": (outside_link, "site.toml", "modality.labs.file", "outside"),
    "no regular file": (pipe, "site.toml", "modality.labs.file", "names no file"),
    "patients file of a zero byte": (
        edit("site.toml", '"patients.csv"', r'"\u0000"'),
        "site.toml",
        "site.patients",
        "is not a path",
    ),
    "patients file outside": (
        edit("site.toml", '"patients.csv"', '"/p.csv"'),
        "site.toml",
        "site.patients",
        "outside",
    ),
    "wrong kind of file": (
        edit("site.toml", '"labs.csv"', '"site.toml"'),
        "site.toml",
        "",
        "is neither .csv nor .parquet",
    ),
    "Parquet truncated": (
        lambda site: (site / "scan.parquet").write_bytes((site / "scan.parquet").read_bytes()[:200]),
        "scan.parquet",
        "",
        "cannot be read as Parquet",
    ),
    "wrong shape in Parquet": (
        lambda site: site.scans(vol=[[1.0], [2.0], [3.0]]),
        "scan.parquet",
        "column vol",
        "neither numbers nor text",
    ),
    "not UTF-8": (
        lambda site: (site / "labs.csv").write_bytes(b"patient,serum_chol\np1,\xff\n"),
        "labs.csv",
        "line 2",
        "not UTF-8",
    ),
    "ragged": (edit("labs.csv", "x,350,p1", "x,350"), "labs.csv", "line 2", "more or fewer cells"),
    "truncated": (edit("labs.csv", "x,600,p4\n", "x,6"), "labs.csv", "line 4", "more or fewer cells"),
    "open quote": (edit("labs.csv", "x,600,p4", 'x,"600,p4'), "labs.csv", "line 4", "quote"),
    "empty file": (lambda site: site.write("labs.csv", ""), "labs.csv", "", "is empty"),
    "no rows": (lambda site: site.write("labs.csv", "patient,serum_chol\n"), "labs.csv", "", "has no rows"),
    "no value": (
        lambda site: site.write("labs.csv", "patient,serum_chol\np1,?\n"),
        "labs.csv",
        "",
        "no value in any",
    ),
    "wrong type": (edit("labs.csv", "350", SECRET + "x"), "labs.csv", f"{CHOL}, line 2", "is not a number"),
    "decimal comma": (edit("labs.csv", "350", '"350,5"'), "labs.csv", f"{CHOL}, line 2", "not a number"),
    "NaN": (edit("labs.csv", "350", "NaN"), "labs.csv", f"{CHOL}, line 2", "is not a finite number"),
    "infinite": (edit("labs.csv", "350", "-inf"), "labs.csv", f"{CHOL}, line 2", "is not a finite number"),
    "too great to represent": (edit("labs.csv", "350", "1e999"), "labs.csv", f"{CHOL}, line 2", "outside"),
    "implausible": (
        edit("labs.csv", "350", SECRET),
        "labs.csv",
        f"{CHOL}, line 2",
        "is outside the plausible range 100 to 600 mg/dl",
    ),
    "NaN in Parquet": (
        lambda site: site.scans(vol=["nan", "1", "2"]),
        "scan.parquet",
        "column vol, row 1",
        "is not a finite number",
    ),
    "absurd local value": (
        lambda site: site.scans(vol=[1e13, 2, 3]),
        "scan.parquet",
        "column vol, row 1",
        "too large to be a measurement",
    ),
    "category": (
        edit("history.csv", "60,M", f"60,{SECRET}"),
        "history.csv",
        "column gender, line 2",
        "in no category",
    ),
    "patient twice": (
        edit("labs.csv", "p2", "p1"),
        "labs.csv",
        f"{PATIENT}, line 3",
        "repeats an earlier patient",
    ),
    "unknown patient": (edit("labs.csv", "p2", SECRET), "labs.csv", f"{PATIENT}, line 3", "is no patient of"),
    "no id": (edit("labs.csv", ",p2", ","), "labs.csv", f"{PATIENT}, line 3", "has no patient id"),
    "no id in patients": (
        edit("patients.csv", "p6,", ","),
        "patients.csv",
        f"{PATIENT}, line 7",
        "no patient id",
    ),
    "patient listed twice": (
        edit("patients.csv", "p6,absent,test", "p1,absent,train"),
        "patients.csv",
        f"{PATIENT}, line 7",
        "repeats an earlier patient",
    ),
    "patient in two splits": (
        edit("patients.csv", "p6,absent,test", "p1,absent,test"),
        "patients.csv",
        f"{PATIENT}, line 7",
        "repeats a patient of another split",
    ),
    "label outside the classes": (
        edit("patients.csv", "p1,absent", f"p1,{SECRET}"),
        "patients.csv",
        "column disease, line 2",
        "is outside the classes",
    ),
    "no label": (edit("patients.csv", "p1,absent", "p1,"), "patients.csv", "column disease, line 2", "has no label"),
    "no split": (
        edit("patients.csv", "absent,test", "absent,"),
        "patients.csv",
        "column split, line 7",
        "is no split",
    ),
    "no training patient": (
        lambda site: site.write("patients.csv", "patient,disease,split\np1,absent,test\n"),
        "patients.csv",
        "",
        "has no training patient",
    ),
    "training patient without modality": (
        edit("patients.csv", "p6,absent,test", "p6,absent,train"),
        "patients.csv",
        "line 7",
        "is a training patient without any modality",
    ),
    "label as input": (
        label_as_input,
        "site.toml",
        "modality.labs",
        "uses the column 'disease'",
    ),
    "id as input": (edit("site.toml", '"serum_chol"', '"patient"'), "site.toml", "modality.labs", "uses the column"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_say_what_is_wrong_and_where(site: SiteFolder, name: str) -> None:
    break_it, file, place, what = BROKEN[name]
    break_it(site)
    problems = site.problems()
    found = [one for one in problems if one.file == str(site / file) and one.place == place and what in one.what]
    assert len(found) == 1, problems
    assert found[0].remedy
    assert not any(SECRET in str(problem) for problem in problems)


@pytest.mark.parametrize(
    "name", [name for name in BROKEN if name not in {"no training patient", "column not mapped"}]
)
def test_one_fault_is_one_problem(site: SiteFolder, name: str) -> None:
    BROKEN[name][0](site)
    assert len(site.problems()) == 1


def test_problems_of_all_files_come_at_once(site: SiteFolder) -> None:
    site.edit("site.toml", "chol = ", "cho1 = ")
    site.edit("site.toml", '"scan.parquet"', '"../scan.parquet"')
    site.edit("patients.csv", "p1,absent", f"p1,{SECRET}")
    site.edit("patients.csv", "absent,validation", "absent,valid")
    site.edit("history.csv", "60,M", "x,M")
    site.edit("history.csv", "100,F", f"{SECRET},Q")
    places = [(problem.file.rpartition("/")[2], problem.place) for problem in site.problems()]
    assert places == [
        ("site.toml", "modality.labs.columns.cho1"),
        ("patients.csv", "column split, line 4"),
        ("patients.csv", "column disease, line 2"),
        ("history.csv", "column age, line 2"),
        ("history.csv", "column age, line 5"),
        ("history.csv", "column gender, line 5"),
        ("labs.csv", ""),
        ("site.toml", "modality.scan.file"),
    ]


def test_repeated_problems_are_told_once(site: SiteFolder) -> None:
    rows = "".join(f"p{place},absent,train\n" for place in range(10, 30))
    site.write("patients.csv", (site / "patients.csv").read_text() + rows)
    (problem,) = site.problems()
    expected = "lines 8, 9, 10, 11, 12 and 15 more lines"
    assert problem == Problem(str(site / "patients.csv"), expected, problem.what, problem.remedy)


def test_an_unreadable_patients_file_does_not_hide_other_problems(site: SiteFolder) -> None:
    site.write("patients.csv", "patient,split\np1\n")
    site.edit("labs.csv", "350", "x")
    assert [problem.file.rpartition("/")[2] for problem in site.problems()] == ["patients.csv", "labs.csv"]
