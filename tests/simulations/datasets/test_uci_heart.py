import hashlib
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flexmoe_core.errors import InputError
from simulations.datasets.uci_heart import Protocol, load_uci_heart, prepare_uci_heart
from tests.simulations.datasets.folders import contents

HOSPITALS = ["cleveland", "hungary", "switzerland", "va-long-beach"]
# of FLamby's own steps on the published files, with the ids given here
FLAMBY_TEST_SHA256 = "f9c3529389feba9e8ea86cd5852d647cb82195e9c23c89f7d36c4f269a8b6626"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uci") / "study"
    prepare_uci_heart(out, "flamby", seed=0)
    return out


def site_toml(folder: Path, hospital: str) -> dict[str, Any]:
    return tomllib.loads((folder / hospital / "site.toml").read_text(encoding="utf-8"))


def test_flamby_tests_exactly_its_own_patients_whatever_the_seed() -> None:
    for seed in (0, 7):
        patients = load_uci_heart("flamby", seed).patients
        test = patients.index[patients["split"] == "test"]
        assert hashlib.sha256(" ".join(test).encode()).hexdigest() == FLAMBY_TEST_SHA256
        assert patients["site"][test].value_counts(sort=False).to_dict() == dict(
            zip(HOSPITALS, (104, 89, 16, 45), strict=True)
        )


def test_patients_that_flamby_drops_join_training() -> None:
    patients = load_uci_heart("flamby", seed=0, validation=0.0).patients
    training = patients[patients["split"] == "train"]
    assert training["site"].value_counts(sort=False).to_dict() == {
        "cleveland": 199,
        "hungary": 172 + 33,
        "switzerland": 30 + 77,
        "va-long-beach": 85 + 70,
    }


def test_only_one_hospital_has_full_modality_training_patients_to_speak_of() -> None:
    pooled = load_uci_heart("flamby", seed=0, validation=0.0)
    training = pooled.patients["split"] == "train"
    full = pooled.observed()[training].all(axis=1).groupby(pooled.patients["site"][training]).sum()
    assert full.to_dict() == {"cleveland": 196, "hungary": 1, "switzerland": 0, "va-long-beach": 1}


@pytest.mark.parametrize("protocol", ["flamby", "all"])
def test_validation_takes_its_share_of_every_hospital_and_label(protocol: Protocol) -> None:
    patients = load_uci_heart(protocol, seed=3, validation=0.2).patients
    rest = patients[patients["split"] != "test"]
    drawn = (rest["split"] == "validation").groupby([rest["site"], rest["disease"]]).agg(["sum", "size"])
    assert ((drawn["sum"] - 0.2 * drawn["size"]).abs() <= 0.5).all()


def test_protocol_all_tests_a_third_of_every_hospital_and_label_by_the_seed() -> None:
    first, second = (load_uci_heart("all", seed).patients for seed in (0, 1))
    tested = (first["split"] == "test").groupby([first["site"], first["disease"]]).agg(["sum", "size"])
    assert ((tested["sum"] - 0.34 * tested["size"]).abs() <= 0.5).all()
    assert not first["split"].equals(second["split"])


def test_the_test_patients_do_not_depend_on_the_validation_share() -> None:
    few, many = (load_uci_heart("all", 0, validation).patients["split"] == "test" for validation in (0.0, 0.4))
    assert few.equals(many)


def test_same_arguments_same_bytes_and_another_seed_other_splits(folder: Path, tmp_path: Path) -> None:
    prepare_uci_heart(tmp_path / "again", "flamby", seed=0)
    prepare_uci_heart(tmp_path / "other", "flamby", seed=1)
    assert contents(tmp_path / "again") == contents(folder)
    assert contents(tmp_path / "other") != contents(folder)


def test_every_hospital_has_its_folder_and_public_facts(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {*HOSPITALS, "study.toml"}
    public = {hospital: site_toml(folder, hospital)["public"] for hospital in HOSPITALS}
    assert public == {
        "cleveland": {"patients": 300, "full_modality": True},
        "hungary": {"patients": 300, "full_modality": False},
        "switzerland": {"patients": 100, "full_modality": False},
        "va-long-beach": {"patients": 200, "full_modality": False},
    }


def test_zeros_stay_in_the_files_and_are_declared_missing(folder: Path) -> None:
    declared = {entry["name"]: entry.get("columns") for entry in site_toml(folder, "switzerland")["modality"]}
    assert declared["labs"] == {"cholesterol": {"column": "cholesterol", "missing": [0]}}
    assert declared["resting"] == {"blood_pressure": {"column": "blood_pressure", "missing": [0]}}
    assert declared["history"] is None
    labs = pd.read_csv(folder / "switzerland" / "labs.csv")
    assert (labs["cholesterol"] == 0).all()


def test_zero_cholesterol_alone_is_no_observation() -> None:
    pooled = load_uci_heart("all", seed=0)
    swiss = pooled.patients["site"] == "switzerland"
    assert pooled.observed()["labs"][swiss].sum() == 123 - 75


def test_a_modality_file_has_only_patients_with_a_value(folder: Path) -> None:
    vessels = pd.read_csv(folder / "va-long-beach" / "fluoroscopy.csv")
    assert len(vessels) == 2
    assert vessels["vessels"].notna().all()


@pytest.mark.parametrize("validation", [-0.1, 1.0, float("nan")])
def test_a_validation_share_outside_its_range_is_refused(tmp_path: Path, validation: float) -> None:
    with pytest.raises(InputError, match="validation"):
        prepare_uci_heart(tmp_path / "study", "flamby", 0, validation)
    assert list(tmp_path.iterdir()) == []
