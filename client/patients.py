"""A hospital's patients file: who the patients are, the split of each, and the labels of the splits asked for.

New patients, who are to be predicted, need neither.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.manifest import SiteSection
from client.tables import LineProblems, Table, canonical, read_table
from flexmoe_core.cohort import UNKNOWN_LABEL
from flexmoe_core.errors import Problem
from flexmoe_core.study import Label

SPLITS = ("train", "validation", "test")
NEW = "new"  # whoever is to be predicted, where nobody asked for a split


@dataclass(frozen=True)
class Patients:
    """Patients in file order, by id. ``labels`` has class indices of the splits that were asked for, and no other."""

    file: str
    unit: str
    lines: Mapping[str, int]
    splits: Mapping[str, str]
    labels: Mapping[str, int]

    def of(self, split: str) -> tuple[str, ...]:
        """The ids of a split's patients, in file order."""
        return tuple(patient for patient, where in self.splits.items() if where == split)


def read_patients(
    path: Path, file: str, section: SiteSection, label: Label, splits: Collection[str]
) -> tuple[Patients | None, list[Problem]]:
    """The patients and every problem with them; None when ids or splits have no column.

    Labels of other splits than the given ones are not read. Raises InputError when the file is no table.
    """
    table = read_table(path, file, (section.id, section.split))
    label_column = section.label or label.name
    problems = [
        table.absent(name, f"the key '{key}' of [site]")
        for key, name in (("id", section.id), ("label", label_column), ("split", section.split))
        if name not in table.header
    ]
    if section.id not in table.cells or section.split not in table.cells:
        return None, problems
    ids, split_of = table.cells[section.id], table.cells[section.split]
    rows, found = _distinct_patients(table, section, split_of, SPLITS)
    problems.extend(found)
    lines = {ids[row]: table.lines[row] for row in rows}
    if "train" not in split_of:
        problems.append(Problem(file, "", "has no training patient", f"Give patients the split '{SPLITS[0]}'."))
    asked = [row for row in rows if split_of[row] in splits]
    labels: dict[str, int] = {}
    if label_column in table.header:
        codes, found = _read_labels(path, file, label_column, label, asked)
        problems.extend(found)
        labels = {ids[row]: code for row, code in zip(asked, codes, strict=True)}
    return Patients(file, table.unit, lines, {ids[row]: split_of[row] for row in rows}, labels), problems


def read_new_patients(
    path: Path, file: str, section: SiteSection, split: str | None
) -> tuple[Patients | None, list[Problem]]:
    """Patients whose label nobody knows, and every problem with them; None when there is no column that tells them.

    Labels are not read. Without ``split`` neither are splits: every patient is then of the split ``NEW``. Raises
    InputError when the file is no table.
    """
    keys = {section.id: "the key 'id' of [site]"}
    if split is not None:
        keys[section.split] = "the key 'split' of [site], or leave out --split"
    table = read_table(path, file, keys)
    problems = [table.absent(name, key) for name, key in keys.items() if name not in table.header]
    if problems:
        return None, problems
    ids = table.cells[section.id]
    split_of = [NEW] * len(table) if split is None else table.cells[section.split]
    rows, problems = _distinct_patients(table, section, split_of, (NEW,) if split is None else SPLITS)
    patients = Patients(
        file=file,
        unit=table.unit,
        lines={ids[row]: table.lines[row] for row in rows},
        splits={ids[row]: split_of[row] for row in rows},
        labels=dict.fromkeys((ids[row] for row in rows), UNKNOWN_LABEL),
    )
    if not patients.of(split or NEW) and not problems:
        whom = "no patient" if split is None else f"no patient of the split '{split}'"
        problems.append(Problem(file, "", f"has {whom}", "Add the patients who are to be predicted."))
    return patients, problems


def _distinct_patients(
    table: Table, section: SiteSection, splits: Sequence[str], valid: Collection[str]
) -> tuple[list[int], list[Problem]]:
    """The first row of every patient, and the problems of ids and of ``splits``, which has one for each row."""
    lines = LineProblems(table.file, table.unit)
    first: dict[str, int] = {}
    for row, patient in enumerate(table.cells[section.id]):
        line = table.lines[row]
        if not patient:
            lines.add(line, section.id, "has no patient id", "Fill it in or remove the line.")
            continue
        if splits[row] not in valid:
            lines.add(line, section.split, "is no split", f"Write {', '.join(SPLITS[:2])} or {SPLITS[2]}.")
        earlier = first.setdefault(patient, row)
        if splits[earlier] != splits[row]:
            lines.add(line, section.id, "repeats a patient of another split", "Keep each patient in one split.")
        elif earlier != row:
            lines.add(line, section.id, "repeats an earlier patient", "Keep one line per patient.")
    return list(first.values()), lines.problems()


def _read_labels(
    path: Path, file: str, column: str, label: Label, rows: Sequence[int]
) -> tuple[list[int], list[Problem]]:
    table = read_table(path, file, (column,), rows)
    codes = {canonical(name): code for code, name in enumerate(label.classes)}
    codes |= {name: code for code, name in enumerate(label.classes)}
    lines = LineProblems(file, table.unit)
    found = []
    for line, cell in zip(table.lines, table.cells[column], strict=True):
        code = codes.get(cell, codes.get(canonical(cell)))
        if code is None:
            what = "is outside the classes" if cell else "has no label"
            lines.add(line, column, what, f"Write one of: {', '.join(label.classes)}.")
        found.append(-1 if code is None else code)
    return found, lines.problems()
