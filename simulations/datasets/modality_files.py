"""What all patients of a study have of one modality, and the file in which a site keeps its own patients' part.

A kind of modality is one class here; ``site_folders`` asks it nothing but what ``ModalityData`` promises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd


class ModalityData(Protocol):
    """One modality of all patients of a study, indexed by their ids."""

    def observed(self) -> pd.Series:
        """By patient: whether anything of the modality was measured, bool."""
        ...

    def write(self, folder: Path, name: str, patients: pd.Index) -> dict[str, Any]:
        """Write the part of some patients, at least one observed, into ``folder``; return its entry of site.toml."""
        ...


@dataclass(frozen=True)
class TabularData:
    """Kind ``tabular``: one row per patient, empty where nothing was measured.

    ``missing[column]`` are the values by which the file says "not measured" other than by an empty cell.
    """

    table: pd.DataFrame
    missing: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def observed(self) -> pd.Series:
        """True where any value of the patient was measured."""
        measured = self.table.notna()
        for column, values in self.missing.items():
            measured[column] &= ~self.table[column].isin(values)
        return measured.any(axis=1)

    def write(self, folder: Path, name: str, patients: pd.Index) -> dict[str, Any]:
        """A CSV with a line for every patient who has a cell."""
        write_csv(folder / f"{name}.csv", self.table.loc[patients].dropna(how="all"))
        entry: dict[str, Any] = {"name": name, "file": f"{name}.csv"}
        if self.missing:
            entry["columns"] = {
                column: {"column": column, "missing": list(values)} for column, values in self.missing.items()
            }
        return entry


@dataclass(frozen=True)
class EmbeddingData:
    """Kind ``embedding``: one vector per patient as a row of numbers, empty where the patient has none."""

    vectors: pd.DataFrame

    def observed(self) -> pd.Series:
        """True where the patient has a vector."""
        return self.vectors.notna().all(axis=1)

    def write(self, folder: Path, name: str, patients: pd.Index) -> dict[str, Any]:
        """An NPZ of ``ids`` (patients,) unicode and ``values`` (patients, size) float32, of those who have one."""
        vectors = self.vectors.loc[patients].dropna()
        file = f"{name}.npz"
        np.savez(folder / file, ids=vectors.index.to_numpy(np.str_), values=vectors.to_numpy(np.float32))
        return {"name": name, "file": file}


@dataclass(frozen=True)
class VolumeData:
    """Kind ``volume``: the (D, H, W) array of each patient who has one, by the ids of all ``patients``."""

    patients: pd.Index
    volumes: Mapping[str, np.ndarray]

    def observed(self) -> pd.Series:
        """True where the patient has a volume."""
        return pd.Series(self.patients.isin(list(self.volumes)), self.patients)

    def write(self, folder: Path, name: str, patients: pd.Index) -> dict[str, Any]:
        """A folder of .npy files, one for each patient who has a volume, and a CSV of their paths."""
        (folder / name).mkdir()
        owners = [patient for patient in patients if patient in self.volumes]
        paths = pd.Series({patient: f"{name}/{patient}.npy" for patient in owners}, name="path", dtype=str)
        for patient, path in paths.items():
            np.save(folder / path, self.volumes[str(patient)], allow_pickle=False)
        write_csv(folder / f"{name}.csv", paths.to_frame())
        return {"name": name, "file": f"{name}.csv"}


@dataclass(frozen=True)
class SequenceData:
    """Kind ``sequence``: rows by patient (an index with repetitions), empty where nothing was measured.

    The column ``time`` gives each row's time. ``patients`` are the ids of all patients of the study.
    """

    patients: pd.Index
    rows: pd.DataFrame
    time: str = "time"

    def observed(self) -> pd.Series:
        """True where any value of the patient was measured at any time."""
        return pd.Series(self.patients.isin(self._measured().index), self.patients)

    def write(self, folder: Path, name: str, patients: pd.Index) -> dict[str, Any]:
        """A CSV of the patients' rows that have a value."""
        measured = self._measured()
        write_csv(folder / f"{name}.csv", measured[measured.index.isin(patients)])
        return {"name": name, "file": f"{name}.csv", "time": self.time}

    def _measured(self) -> pd.DataFrame:
        return self.rows[self.rows.drop(columns=self.time).notna().any(axis=1)]


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """A table of patients, indexed by their ids."""
    table.to_csv(path, index_label="patient", lineterminator="\n")
