"""Patients of many sites in one place, and the study and site folders that are written from them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import tomli_w

from flexmoe_core.errors import InputError, Problem
from flexmoe_core.study import Study

MIN_FULL = 8  # full-modality training patients from which a site declares that it has some


@dataclass(frozen=True)
class PooledTables:
    """The patients of every site of a study.

    ``patients`` has one row per patient, indexed by their ids, and the columns ``site``, ``split`` (train,
    validation or test) and the study's label. ``tables[m]`` holds the values of modality m under the same index,
    empty where nothing was measured; ``missing[m][column]`` are the values by which the files say "not measured"
    other than by an empty cell.
    """

    study: Study
    patients: pd.DataFrame
    tables: Mapping[str, pd.DataFrame]
    missing: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    def observed(self) -> pd.DataFrame:
        """Who has which modality: (patients, modalities) bool, true where any of its values was measured."""
        return pd.DataFrame({name: self._observed_one(name) for name in self.study.modality_names})

    def _observed_one(self, modality: str) -> pd.Series:
        table = self.tables[modality]
        measured = table.notna()
        for column, values in self.missing.get(modality, {}).items():
            measured[column] &= ~table[column].isin(values)
        return measured.any(axis=1)


def write_site_folders(out: Path, pooled: PooledTables) -> None:
    """Write ``out/study.toml`` and one folder per site with site.toml, patients.csv and a CSV per modality.

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


def _write_site(folder: Path, pooled: PooledTables, observed: pd.DataFrame, site: str) -> None:
    folder.mkdir()
    patients = pooled.patients[pooled.patients["site"] == site]
    _write_csv(folder / "patients.csv", patients[[pooled.study.label.name, "split"]])
    entries = []
    for name in pooled.study.modality_names:
        if observed.loc[patients.index, name].any():
            _write_csv(folder / f"{name}.csv", pooled.tables[name].loc[patients.index].dropna(how="all"))
            entries.append(_modality_entry(name, pooled.missing.get(name, {})))
    training = patients.index[patients["split"] == "train"]
    public = {
        "patients": one_significant_figure(len(patients)),
        "full_modality": bool(observed.loc[training].all(axis=1).sum() >= MIN_FULL),
    }
    described = {"name": site, "id": "patient", "patients": "patients.csv"}
    document = {"site": described, "public": public, "modality": entries}
    _write_text(folder / "site.toml", tomli_w.dumps(document))


def _modality_entry(name: str, missing: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "file": f"{name}.csv"}
    if missing:
        entry["columns"] = {column: {"column": column, "missing": list(values)} for column, values in missing.items()}
    return entry


def one_significant_figure(count: int) -> int:
    """The size that a site may tell: 303 patients are 300, 47 are 50."""
    unit = int(10 ** (len(str(count)) - 1))
    return (count + unit // 2) // unit * unit


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    table.to_csv(path, index_label="patient", lineterminator="\n")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
