"""Tables of what happened in the run: coverage, rounds, settings and provenance."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping

from flexmoe_core.curriculum import Stage
from server.report.finished_run import FinishedRun, Round
from server.report.tables import DASH, Cell, Column, Table
from server.settings import RunSettings

NONE = Cell(DASH, is_muted=True)


def size(number: int) -> str:
    """Bytes in decimal units."""
    value, units = float(number), ("B", "kB", "MB", "GB", "TB")
    for unit in units:
        if value < 1000 or unit == units[-1]:
            return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds as a reader says them."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"


def cohort_table(run: FinishedRun) -> Table:
    """What each hospital declared and announced."""
    columns = ("Training", "Validation", "Test", "Declared in public")
    rows = []
    for site in run.sites:
        reply = run.facts.participants.get(site)
        patients = reply.patients if reply else {}
        test = run.site_scores(site).n
        rows.append(
            (
                Cell(site),
                _count(patients.get("train")),
                _count(patients.get("validation")),
                _count(test or None),
                _count(reply.declared_patients if reply else None),
                Cell(f"{len(reply.announced)}") if reply else NONE,
            )
        )
    titles = (*map(Column, columns), Column("Combinations announced"))
    return Table("Patients by hospital", (Column("Hospital", is_number=False), *titles), tuple(rows))


def combinations_table(run: FinishedRun) -> Table:
    """The federation's combinations: their expert, and training patients where a hospital announced them."""
    has_experts = run.settings.method.model.routed_experts > 0
    titles = [*(["Expert"] if has_experts else []), "Hospitals", "All", *run.sites]
    columns = [Column("Combination", is_number=False), *map(Column, titles)]
    announced = {site: reply.announced for site, reply in run.facts.participants.items()}
    rows = []
    for mask, expert in zip(run.table.masks, run.table.experts, strict=True):
        counts = [announced.get(site, {}).get(mask) for site in run.sites]
        known = [count for count in counts if count is not None]
        first = [Cell(combination_title(run, mask)), *([Cell(str(expert))] if has_experts else [])]
        rows.append((*first, _count(len(known)), _count(sum(known)), *map(_count, counts)))
    return Table("Announced training patients by combination and hospital", tuple(columns), tuple(rows))


def combination_title(run: FinishedRun, mask: int | None) -> str:
    """The modalities of a combination as a reader says them."""
    if mask is None:
        return "merged small groups"
    return " + ".join(run.study.names_of(mask)) or "no modality"


def participation_table(run: FinishedRun) -> Table:
    """How often each hospital took part, and why it did not."""
    titles = ("Answered", "Silent", "Failed", "Refused", "Training time")
    columns = (
        Column("Hospital", is_number=False),
        *map(Column, titles),
        Column("Reasons", is_number=False),
    )
    rows = []
    for site in run.sites:
        seconds = [row.training_seconds[site] for row in run.history if site in row.training_seconds]
        reasons = Counter(reason for row in run.history for reason in _reasons(row, site))
        if site in run.facts.missing:
            reasons[f"no final answer: {run.facts.missing[site]}"] += 1
        told = "; ".join(
            f"{reason} ({times} times)" if times > 1 else reason for reason, times in reasons.most_common()
        )
        rows.append(
            (
                Cell(site),
                Cell(str(sum(site in row.answered for row in run.history))),
                _count(sum(site in row.missing for row in run.history)),
                _count(sum(site in row.failed for row in run.history)),
                _count(sum(site in row.dropped for row in run.history)),
                Cell(duration(sum(seconds))),
                Cell(told) if told else NONE,
            )
        )
    return Table("Participation by hospital", columns, tuple(rows))


def rounds_table(run: FinishedRun) -> Table:
    """The log of every round."""
    titles = ("Answered", "From hospitals", "To hospitals", "Time")
    columns = (Column("Round"), Column("Stage", is_number=False), Column("Aggregated", is_number=False))
    rows = []
    for row in run.history:
        absent = [f"{site} ({why})" for site in run.sites for why in _reasons(row, site)]
        rows.append(
            (
                Cell(str(row.round)),
                Cell(row.stage.value),
                Cell("yes") if row.aggregated else Cell("no: below the quorum"),
                Cell(f"{len(row.answered)} of {len(run.sites)}"),
                Cell(size(row.bytes_up)),
                Cell(size(row.bytes_down)),
                Cell(duration(row.seconds)),
                Cell("; ".join(absent)) if absent else NONE,
            )
        )
    all_columns = (*columns, *map(Column, titles), Column("Absent", is_number=False))
    return Table("Every round", all_columns, tuple(rows))


def settings_table(settings: RunSettings) -> Table:
    """Every setting with its default where it differs."""
    defaults = dict(_flat(RunSettings().model_dump(mode="json")))
    columns = (Column("Setting", is_number=False), Column("Value"), Column("Default, if another"))
    rows = []
    for key, value in _flat(settings.model_dump(mode="json")):
        default = defaults.get(key)
        rows.append((Cell(key), Cell(_shown(value)), NONE if value == default else Cell(_shown(default))))
    return Table("Settings", columns, tuple(rows))


def study_table(run: FinishedRun) -> Table:
    """The modalities of the study."""
    columns = tuple(Column(title, is_number=False) for title in ("Modality", "Kind", "Encoder", "Contents"))
    rows = tuple(
        (
            Cell(modality.name),
            Cell(modality.kind),
            Cell("shared by all hospitals" if modality.encoder == "shared" else "each hospital's own"),
            Cell(modality.contents) if modality.contents else NONE,
        )
        for modality in run.study.modalities
    )
    return Table("Modalities", columns, rows)


def provenance_table(run: FinishedRun) -> Table:
    """What names this run and its results beyond doubt."""
    rows = [("Run", run.name)]
    rows += [(f"SHA-256 of {name}", digest) for name, digest in run.hashes.items()]
    rows += [(f"SHA-256 of the model bundle at {site}", digest) for site, digest in sorted(run.facts.bundles.items())]
    columns = (Column("What", is_number=False), Column("Value", is_number=False))
    return Table("Provenance", columns, tuple((Cell(what), Cell(value)) for what, value in rows))


def stage_lengths(run: FinishedRun) -> tuple[int, int]:
    """Rounds of the generalize and of the specialize stage."""
    generalize = sum(row.stage is Stage.GENERALIZE for row in run.history)
    return generalize, len(run.history) - generalize


def _reasons(row: Round, site: str) -> Iterator[str]:
    if site in row.missing:
        yield "no answer in time"
    if site in row.failed:
        yield row.failed[site]
    yield from row.dropped.get(site, ())


def _count(value: int | None) -> Cell:
    return Cell(f"{value:,}") if value else NONE


def _flat(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: object) -> str:
    return value if isinstance(value, str) else "not set" if value is None else json.dumps(value)
