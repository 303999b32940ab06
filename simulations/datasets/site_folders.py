"""Patients of many sites in one place, and the study and site folders that are written from them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tomli_w

from flexmoe_core.errors import InputError, Problem
from flexmoe_core.study import Study
from simulations.datasets.modality_files import ModalityData, write_csv

MIN_FULL = 8  # full-modality training patients from which a site declares that it has some


@dataclass(frozen=True)
class PooledPatients:
    """The patients of every site of a study.

    ``patients`` has one row per patient, indexed by their ids, and the columns ``site``, ``split`` (train,
    validation or test) and the study's label. ``modalities[m]`` is what they have of modality m, under the same
    index.
    """

    study: Study
    patients: pd.DataFrame
    modalities: Mapping[str, ModalityData]

    def observed(self) -> pd.DataFrame:
        """Who has which modality: (patients, modalities) bool."""
        return pd.DataFrame({name: self.modalities[name].observed() for name in self.study.modality_names})


def write_site_folders(out: Path, pooled: PooledPatients) -> None:
    """Write ``out/study.toml`` and one folder per site with site.toml, patients.csv and a file per modality.

    ``out`` appears whole or not at all. InputError: it exists already and is not empty, or cannot be written.
    """
    if out.exists() and not (out.is_dir() and next(out.iterdir(), None) is None):
        raise InputError([Problem(str(out), "", "exists already and is not an empty folder", "Name a new folder.")])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".prepare-", dir=out.parent) as scratch:
            folder = Path(scratch) / "study"  # the scratch folder itself is private to its owner: so would out be
            folder.mkdir()
            _write_text(folder / "study.toml", pooled.study.to_toml())
            observed = pooled.observed()
            for site in pooled.patients["site"].unique():
                _write_site(folder / site, pooled, observed, str(site))
            folder.rename(out)
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        raise InputError([Problem(str(out), "", what, "Name a folder that you may write to.")]) from error


def _write_site(folder: Path, pooled: PooledPatients, observed: pd.DataFrame, site: str) -> None:
    folder.mkdir()
    patients = pooled.patients[pooled.patients["site"] == site]
    write_csv(folder / "patients.csv", patients[[pooled.study.label.name, "split"]])
    entries = []
    for name in pooled.study.modality_names:
        if observed.loc[patients.index, name].any():
            entries.append(pooled.modalities[name].write(folder, name, patients.index))
    training = patients.index[patients["split"] == "train"]
    public = {
        "patients": one_significant_figure(len(patients)),
        "full_modality": bool(observed.loc[training].all(axis=1).sum() >= MIN_FULL),
    }
    described = {"name": site, "id": "patient", "patients": "patients.csv"}
    document = {"site": described, "public": public, "modality": entries}
    _write_text(folder / "site.toml", tomli_w.dumps(document))


def one_significant_figure(count: int) -> int:
    """The size that a site may tell: 303 patients are 300, 47 are 50."""
    unit = int(10 ** (len(str(count)) - 1))
    return (count + unit // 2) // unit * unit


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
