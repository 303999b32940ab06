import tomllib
from pathlib import Path

import pandas as pd
import pytest

from flexmoe_core.errors import InputError
from flexmoe_core.modalities.tabular import NumericColumn, TabularModality
from flexmoe_core.study import Label, Study, load_study
from simulations.datasets import site_folders
from simulations.datasets.modality_files import TabularData
from simulations.datasets.site_folders import PooledPatients, one_significant_figure, write_site_folders
from tests.simulations.datasets.folders import contents


def pooled() -> PooledPatients:
    """Sites ``east`` and ``west``; west has no scan but a sentinel in its column."""
    patients = pd.DataFrame(
        {"site": ["east", "east", "west"], "split": "train", "label": ["no", "yes", "no"]},
        index=pd.Index(["e1", "e2", "w1"], name="patient"),
    )
    study = Study(
        name="two-sites",
        label=Label(name="label", classes=("no", "yes")),
        modalities=tuple(
            TabularModality(name=name, encoder="shared", columns=(NumericColumn(name=name, range=(0.0, 9.0)),))
            for name in ("blood", "scan")
        ),
    )
    modalities = {
        "blood": TabularData(pd.DataFrame({"blood": [1.5, None, 2.0]}, patients.index)),
        "scan": TabularData(pd.DataFrame({"scan": [3.0, 4.0, -2.0]}, patients.index), {"scan": [-2]}),
    }
    return PooledPatients(study, patients, modalities)


def test_a_declared_sentinel_is_no_observation() -> None:
    assert pooled().observed().to_numpy().tolist() == [[True, True], [False, True], [True, False]]


def test_the_files_of_each_site(tmp_path: Path) -> None:
    write_site_folders(tmp_path / "out", pooled())
    files = contents(tmp_path / "out")
    assert sorted(files) == [
        *("east/blood.csv", "east/patients.csv", "east/scan.csv", "east/site.toml"),
        *("study.toml", "west/blood.csv", "west/patients.csv", "west/site.toml"),
    ]
    assert files["east/patients.csv"] == b"patient,label,split\ne1,no,train\ne2,yes,train\n"
    assert files["east/blood.csv"] == b"patient,blood\ne1,1.5\n"
    site = tomllib.loads(files["east/site.toml"].decode())
    assert site["site"] == {"name": "east", "id": "patient", "patients": "patients.csv"}
    assert site["modality"] == [
        {"name": "blood", "file": "blood.csv"},
        {"name": "scan", "file": "scan.csv", "columns": {"scan": {"column": "scan", "missing": [-2]}}},
    ]


def test_the_study_reads_back(tmp_path: Path) -> None:
    write_site_folders(tmp_path / "out", pooled())
    assert load_study(tmp_path / "out" / "study.toml") == pooled().study


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        write_site_folders(tmp_path / "out", pooled())
    assert contents(tmp_path) == {"out/mine.txt": b"mine"}


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        write_site_folders(tmp_path / "out", pooled())
    with pytest.raises(InputError, match="cannot be written"):
        write_site_folders(tmp_path / "out" / "below", pooled())


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_site_folders(tmp_path / "out", pooled())
    assert (tmp_path / "out" / "study.toml").exists()


def test_nothing_stays_behind_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(path: Path, table: pd.DataFrame) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(site_folders, "write_csv", full_disk)
    with pytest.raises(InputError, match="No space left"):
        write_site_folders(tmp_path / "out", pooled())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("count", "told"), [(0, 0), (9, 9), (14, 10), (15, 20), (303, 300), (960, 1000)])
def test_one_significant_figure(count: int, told: int) -> None:
    assert one_significant_figure(count) == told
