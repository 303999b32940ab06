"""A small site folder that has nothing wrong with it, for tests to read or to break."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from client.site_data import SiteData, read_site
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.study import Study, load_study

STUDY = """
[study]
name = "heart"
[label]
name = "disease"
classes = ["absent", "present"]
[[modality]]
name = "history"
kind = "tabular"
encoder = "shared"
[[modality.column]]
name = "age"
type = "numeric"
unit = "years"
range = [20, 100]
[[modality.column]]
name = "sex"
type = "categorical"
categories = ["female", "male"]
[[modality]]
name = "labs"
kind = "tabular"
encoder = "shared"
[[modality.column]]
name = "chol"
type = "numeric"
unit = "mg/dl"
range = [100, 600]
[[modality]]
name = "scan"
kind = "tabular"
encoder = "local"
"""

MANIFEST = """
[site]
name = "cleveland"
id = "patient"
patients = "patients.csv"
[public]
patients = 6
full_modality = true
[[modality]]
name = "history"
file = "history.csv"
[modality.columns]
sex = { column = "gender", missing = [9], values = { M = "male", F = "female" } }
[[modality]]
name = "labs"
file = "labs.csv"
missing = ["", "?"]
[modality.columns]
chol = "serum_chol"
[[modality]]
name = "scan"
file = "scan.parquet"
[[modality.column]]
name = "volume"
type = "numeric"
unit = "ml"
column = "vol"
missing = [-1]
[[modality.column]]
name = "device"
type = "categorical"
categories = ["A", "B"]
"""

TABLES = {
    "patients.csv": "patient,disease,split\n"
    "p1,absent,train\np2,present,train\np3,absent,validation\np4,present,test\np5,present,train\np6,absent,test\n",
    "history.csv": "patient,age,gender\np1,60,M\np2,,female\np3,20,9.0\np4,100,F\np5,80,M\n",
    "labs.csv": "note,serum_chol,patient\nx,350,p1\nx,?,p2\nx,600,p4\n",
}
SCANS = {"patient": ["p1", "p2", "p3"], "vol": [10.0, 30.0, 50.0], "device": ["A", None, "B"]}


@dataclass(frozen=True)
class SiteFolder:
    """A site folder with its study.toml in it."""

    path: Path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def write(self, name: str, text: str) -> None:
        (self / name).write_text(text, encoding="utf-8")

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self / name).read_text(encoding="utf-8")
        assert old in text
        self.write(name, text.replace(old, new, 1))

    def scans(self, **columns: object) -> None:
        pd.DataFrame(SCANS | columns).to_parquet(self / "scan.parquet")

    def study(self) -> Study:
        return load_study(self / "study.toml")

    def read(self, splits: Collection[str] = ("train", "validation", "test")) -> SiteData:
        return read_site(self.path, self.study(), splits)

    def problems(self, splits: Collection[str] = ("train", "validation", "test")) -> tuple[Problem, ...]:
        try:
            self.read(splits)
        except InputError as error:
            return error.problems
        return ()


def make_site(folder: Path) -> SiteFolder:
    """Write the good folder."""
    site = SiteFolder(folder)
    folder.mkdir(exist_ok=True)
    for name, text in ({"study.toml": STUDY, "site.toml": MANIFEST} | TABLES).items():
        site.write(name, text)
    site.scans()
    return site


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    return make_site(tmp_path / "cleveland")
