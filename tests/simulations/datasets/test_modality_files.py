from pathlib import Path

import numpy as np
import pandas as pd

from simulations.datasets.modality_files import EmbeddingData, SequenceData, TabularData, VolumeData
from tests.simulations.datasets.folders import contents

PATIENTS = pd.Index(["p1", "p2", "p3"], name="patient")


def test_a_table_has_a_line_for_who_has_a_cell_and_its_entry_names_the_sentinels(tmp_path: Path) -> None:
    data = TabularData(pd.DataFrame({"dose": [1.5, -1.0, None]}, PATIENTS), {"dose": [-1]})
    assert data.observed().tolist() == [True, False, False]
    entry = data.write(tmp_path, "drug", PATIENTS)
    columns = {"dose": {"column": "dose", "missing": [-1]}}
    assert entry == {"name": "drug", "file": "drug.csv", "columns": columns}
    assert contents(tmp_path) == {"drug.csv": b"patient,dose\np1,1.5\np2,-1.0\n"}


def test_vectors_are_written_for_those_of_the_patients_who_have_one(tmp_path: Path) -> None:
    data = EmbeddingData(pd.DataFrame([[1.0, 2.0], [np.nan, np.nan], [5.0, 6.0]], PATIENTS))
    assert data.observed().tolist() == [True, False, True]
    assert data.write(tmp_path, "scan", PATIENTS[1:]) == {"name": "scan", "file": "scan.npz"}
    with np.load(tmp_path / "scan.npz", allow_pickle=False) as arrays:
        assert arrays["ids"].tolist() == ["p3"]
        assert arrays["ids"].dtype.kind == "U"
        assert arrays["values"].dtype == np.float32
        assert arrays["values"].tolist() == [[5.0, 6.0]]


def test_volumes_are_files_of_their_own_beside_a_table_of_their_paths(tmp_path: Path) -> None:
    data = VolumeData(PATIENTS, {"p1": np.zeros((8, 8, 8)), "p3": np.ones((8, 8, 8))})
    assert data.observed().tolist() == [True, False, True]
    assert data.write(tmp_path, "scan", PATIENTS[1:]) == {"name": "scan", "file": "scan.csv"}
    assert (tmp_path / "scan.csv").read_text() == "patient,path\np3,scan/p3.npy\n"
    assert [file.name for file in (tmp_path / "scan").iterdir()] == ["p3.npy"]
    assert np.load(tmp_path / "scan/p3.npy", allow_pickle=False).all()


def test_rows_are_written_for_those_of_the_patients_who_have_a_value(tmp_path: Path) -> None:
    rows = pd.DataFrame({"hour": [3, 1, 2, 4], "rate": [60.0, np.nan, 70.0, 80.0]}, ["p3", "p2", "p3", "p1"])
    data = SequenceData(PATIENTS, rows, time="hour")
    assert data.observed().to_dict() == {"p1": True, "p2": False, "p3": True}
    assert data.write(tmp_path, "vitals", PATIENTS[1:]) == {"name": "vitals", "file": "vitals.csv", "time": "hour"}
    assert contents(tmp_path) == {"vitals.csv": b"patient,hour,rate\np3,3,60.0\np3,2,70.0\n"}
