"""What a bundle says of new patients, as the file that a hospital reads: one row per patient, CSV or Parquet.

Shapes: B patients, Y classes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from client.bundle import Bundle
from client.new_patients import NewPatients
from flexmoe_core.checkpoint import write_atomic
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.scores import predicted_classes
from flexmoe_core.validation import Finding

SUFFIXES = (".csv", ".parquet")
NO_MODALITY = "(none)"
PROBABILITY, PREDICTED = "probability_", "predicted_class"
MODALITIES, TRAINED = "modalities", "combination_trained"
MODEL, RUN = "model", "run"

Columns: TypeAlias = dict[str, Sequence[str] | Sequence[float] | Sequence[bool]]


@dataclass(frozen=True)
class PredictionsFile:
    """Where predictions are written; ``force`` allows it to replace a file."""

    path: Path
    force: bool

    def require_writable(self, inputs: Collection[Path] = ()) -> None:
        """Raise InputError where the file cannot be written or may not be, as when it is one of the inputs."""
        try:
            finding = self._finding(inputs)
        except OSError as error:  # an endless name, a folder that nobody may look into
            finding = _unwritable(error)
        if finding is not None:
            raise InputError([Problem(str(self.path), "", finding.what, finding.remedy)])

    def write(self, columns: Columns) -> None:
        """Write the columns at once, for the owner alone. Raises InputError when the file cannot be written."""
        encode = _parquet if self.path.suffix.lower() == ".parquet" else _csv
        try:
            write_atomic(self.path, encode(columns))
        except OSError as error:
            finding = _unwritable(error)
            raise InputError([Problem(str(self.path), "", finding.what, finding.remedy)]) from None

    def _finding(self, inputs: Collection[Path]) -> Finding | None:
        path = self.path
        if path.suffix.lower() not in SUFFIXES:
            return Finding("is neither .csv nor .parquet", "Choose a name that ends in one of these.")
        if not path.parent.is_dir():
            return Finding("is in a folder that does not exist", "Create the folder, or correct the path.")
        if path.is_dir():
            return Finding("is a folder", "Name a file in it.")
        if path.resolve() in inputs:
            return Finding("is one of the files that are read", "Choose another name.")
        if path.exists() and not self.force:
            return Finding("exists already", "Choose another name, or replace it with --force.")
        return None


def _unwritable(error: OSError) -> Finding:
    what = f"cannot be written: {error.strerror or 'unknown reason'}"
    return Finding(what, "Free space there, or correct the path or its permissions.")


def prediction_columns(patients: NewPatients, probabilities_BY: np.ndarray, bundle: Bundle) -> Columns:
    """The file's columns by name. Raises InputError when the id's has the name of another one."""
    study, table = bundle.facts.terms.study, bundle.facts.table
    classes, masks = study.label.classes, patients.cohort.masks_B.tolist()
    columns: Columns = {
        f"{PROBABILITY}{name}": probabilities_BY[:, place].tolist() for place, name in enumerate(classes)
    }
    columns |= {
        PREDICTED: [classes[place] for place in predicted_classes(probabilities_BY).tolist()],
        MODALITIES: [" + ".join(study.names_of(mask)) or NO_MODALITY for mask in masks],
        TRAINED: [mask in table.masks for mask in masks],
        MODEL: [bundle.digest] * len(masks),
        RUN: [bundle.facts.terms.run] * len(masks),
    }
    if patients.id_column in columns:
        what = f"is called '{patients.id_column}', as a column of the predictions"
        raise InputError([Problem(patients.manifest, "site.id", what, "Rename the column of ids in all files.")])
    return {patients.id_column: patients.ids, **columns}


def _csv(columns: Columns) -> bytes:
    """Numbers with all their digits: read back, they are the same."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in zip(*columns.values(), strict=True))
    return text.getvalue().encode()


def _cell(value: str | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parquet(columns: Columns) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), sink)
    return sink.getvalue()
