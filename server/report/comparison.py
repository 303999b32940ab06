"""The federated model beside what a user would pick instead, on the same test patients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from flexmoe_core.checkpoint import write_atomic
from flexmoe_core.errors import InputError, Problem
from server.run_store import PUBLIC_MODE

FILE = "comparison.json"
POOLED = "pooled"


class Measures(NamedTuple):
    """Test accuracy and AUROC of one method at one site; None where undefined or not computed."""

    accuracy: float | None
    auroc: float | None


@dataclass(frozen=True)
class ComparisonRow:
    """One site, or ``POOLED``: its test patients and each method's measures on them.

    A method that is not in ``measures`` was not run there.
    """

    site: str
    n: int
    n_positive: int | None
    measures: Mapping[str, Measures]


@dataclass(frozen=True)
class PairedDifference:
    """How much better ``method`` is than ``baseline`` on the same patients, with its 95% interval."""

    site: str
    method: str
    baseline: str
    metric: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Methods in the order in which they are shown, the federated one first; ``note`` says how they were made."""

    methods: tuple[str, ...]
    rows: tuple[ComparisonRow, ...]
    note: str
    differences: tuple[PairedDifference, ...] = ()


_JSON = TypeAdapter(Comparison)


def save_comparison(run_folder: Path, comparison: Comparison) -> None:
    """Keep the comparison beside the run, so that the page can be written again."""
    write_atomic(run_folder / FILE, _JSON.dump_json(comparison, indent=2) + b"\n", PUBLIC_MODE)


def load_comparison(run_folder: Path) -> Comparison | None:
    """What ``save_comparison`` wrote, None where there is nothing; raises InputError for anything else."""
    file = run_folder / FILE
    if not file.is_file():
        return None
    try:
        return _JSON.validate_json(file.read_bytes())
    except ValidationError:
        remedy = "Delete it, and compare again."
        raise InputError([Problem(str(file), "", "is not a comparison", remedy)]) from None
