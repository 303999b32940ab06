"""What the page says of privacy: what was promised, what it cost each hospital, and the noised results."""

from __future__ import annotations

from server.report.finished_run import FinishedRun
from server.report.records import NONE
from server.report.tables import Cell, Column, Table, number

SPLITS = {"test": "Test", "validation": "Validation"}


def cost_table(run: FinishedRun) -> Table | None:
    """What patient-level privacy cost at each hospital; None without it."""
    patient = run.privacy.get("patient")
    if patient is None:
        return None
    titles = ("Sampling rate", "Noise multiplier", "Epsilon spent", "Epsilon promised")
    rows = tuple(
        (
            Cell(site),
            Cell(number(patient["sampling_rate"][site])),
            Cell(number(patient["noise_multiplier"][site])),
            Cell(number(spent)),
            Cell(f"{patient['epsilon']:g}"),
        )
        for site, spent in patient["spent"].items()
    )
    return Table("Privacy by hospital", (Column("Hospital", is_number=False), *map(Column, titles)), rows)


def released_table(run: FinishedRun) -> Table | None:
    """The noised results of all hospitals together; None where none were released."""
    if not run.released:
        return None
    titles = ("Patients, about", "AUROC", "Accuracy", "Noise of a count")
    rows = tuple(
        (
            Cell(title),
            Cell(f"{run.released[split]['n']:,.0f}"),
            _metric(run.released[split]["auroc"]),
            _metric(run.released[split]["accuracy"]),
            Cell(f"\N{PLUS-MINUS SIGN}{run.released[split]['deviation']:.1f}"),
        )
        for split, title in SPLITS.items()
        if split in run.released
    )
    return Table("Noised results", (Column("Patients", is_number=False), *map(Column, titles)), rows)


def released_headline(run: FinishedRun, metric: str, title: str) -> dict[str, str]:
    """A noised test result in large."""
    value = run.released.get("test", {}).get(metric)
    return {"title": title, "value": number(value), "note": "with noise" if value is not None else "withheld"}


def _metric(value: float | None) -> Cell:
    return NONE if value is None else Cell(number(value))
