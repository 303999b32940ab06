"""A run's folder: config.toml, study.toml, checkpoint/, history.jsonl, audit.jsonl, results, metrics.json.

Everything that a fresh machine needs to resume is here. Writes are atomic; times stand in the history and in the
audit record only, so that equal runs have equal checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import Field

from flexmoe_core.checkpoint import keep_last, latest_checkpoint, read_checkpoint, write_atomic, write_checkpoint
from flexmoe_core.enrollment import Roster, read_public_file
from flexmoe_core.errors import CheckpointError, InputError, Problem
from flexmoe_core.messages import RunName
from flexmoe_core.study import Study, load_study
from flexmoe_core.validation import FrozenModel, validate
from server.settings import RunSettings, load_settings

PUBLIC_MODE = 0o644
KEPT_CHECKPOINTS = 2
MASKS_FILE = "masks.json"


class _RunFile(FrozenModel):
    run: RunName


class _MasksFile(FrozenModel):
    """How often keys have been exchanged anew, and the rows that no sum releases, once they are fixed."""

    attempt: int = Field(default=0, ge=0)
    held: dict[str, tuple[int, ...]] | None = None


class RunStore:
    """Reads and writes one run's folder; the coordinator is its only writer.

    ``durable`` says whether each line of the audit record must survive a power cut.
    """

    def __init__(self, folder: Path, durable: bool = True) -> None:
        self.folder, self.durable = folder, durable

    @classmethod
    def create(cls, folder: Path, study: Study, settings: RunSettings) -> RunStore:
        """A new run; raises InputError where the folder already holds something or cannot be made."""
        try:
            if folder.exists() and any(folder.iterdir()):
                remedy = "Choose another folder, or resume the run that is there."
                raise InputError([Problem(str(folder), "", "is not empty", remedy)])
            (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"cannot be a run folder: {error.strerror}"
            raise InputError([Problem(str(folder), "", what, "Name a folder that you may write to.")]) from None
        store = cls(folder)
        store._write_text("config.toml", settings.to_toml())
        store._write_text("study.toml", study.to_toml())
        store._write_text("run.json", json.dumps({"run": secrets.token_hex(16)}) + "\n")
        return store

    @classmethod
    def open(cls, folder: Path, durable: bool = True) -> RunStore:
        """An existing run; raises InputError where there is none."""
        if not (folder / "run.json").is_file():
            raise InputError([Problem(str(folder), "", "holds no run", "Correct the path, or start a run.")])
        return cls(folder, durable)

    @property
    def run(self) -> str:
        """The name that tells this run from all others. Raises InputError where run.json does not hold it."""
        return validate(self._read_json("run.json"), _RunFile, str(self.folder / "run.json")).run

    @property
    def study(self) -> Study:
        """The study that the run was started with."""
        return load_study(self.folder / "study.toml")

    @property
    def settings(self) -> RunSettings:
        """The settings that the run was started with."""
        return load_settings(self.folder / "config.toml")

    def save_round(self, number: int, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> str:
        """Write the checkpoint of a round, keep it and the one before, and give the SHA-256 that seals it."""
        digest = write_checkpoint(self.folder / "checkpoint" / f"round-{number:05d}", arrays, facts)
        keep_last(self.folder / "checkpoint", KEPT_CHECKPOINTS)
        return digest

    def digest(self, name: str) -> str:
        """SHA-256 of a file of the run."""
        return hashlib.sha256((self.folder / name).read_bytes()).hexdigest()

    def last_round(self) -> tuple[dict[str, np.ndarray], dict[str, Any], list[str]] | None:
        """Arrays and facts of the newest readable checkpoint, and in words why newer ones were refused.

        None where the run has not come to its first one; raises CheckpointError where none is readable.
        """
        found, refused = latest_checkpoint(self.folder / "checkpoint")
        if found is not None:
            return found.arrays, found.facts, refused
        if refused:
            raise CheckpointError(f"{self.folder / 'checkpoint'}: nothing to resume from ({'; '.join(refused)})")
        return None

    def next_attempt(self) -> int:
        """A number that no masked sum of this run has had, and none will have again."""
        masks = self._masks()
        self._save_masks(masks.model_copy(update={"attempt": masks.attempt + 1}))
        return masks.attempt + 1

    def held_rows(self) -> dict[str, tuple[int, ...]] | None:
        """Rows by tensor that masked sums hold back; None where they have not been fixed."""
        return self._masks().held

    def save_held_rows(self, held: Mapping[str, tuple[int, ...]]) -> None:
        """Fix them for the whole run."""
        self._save_masks(self._masks().model_copy(update={"held": dict(held)}))

    def _masks(self) -> _MasksFile:
        file = self.folder / MASKS_FILE
        if not file.is_file():
            return _MasksFile()
        return validate(self._read_json(MASKS_FILE), _MasksFile, str(file))

    def _save_masks(self, masks: _MasksFile) -> None:
        self._write_text(MASKS_FILE, masks.model_dump_json() + "\n")

    def save_roster(self, roster: Roster) -> None:
        """Keep whose signatures count in this run."""
        self._write_text("roster.json", roster.model_dump_json(indent=2) + "\n")

    @property
    def roster(self) -> Roster | None:
        """Whose signatures count; None where nobody signs, as in simulations."""
        file = self.folder / "roster.json"
        return read_public_file(Roster, file) if file.is_file() else None

    def append_history(self, row: Mapping[str, Any]) -> None:
        """Add one line to history.jsonl."""
        self._append("history.jsonl", row)

    def history(self) -> list[dict[str, Any]]:
        """All lines of history.jsonl; those that a kill cut short are left out."""
        return self._rows("history.jsonl")

    def append_event(self, row: Mapping[str, Any]) -> None:
        """Add to events.jsonl what is no round: who was refused, which checkpoint was passed over."""
        if "round" not in row:
            self._append("events.jsonl", row)

    def events(self) -> list[dict[str, Any]]:
        """All lines of events.jsonl; those that a kill cut short are left out."""
        return self._rows("events.jsonl")

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with (self.folder / name).open("a+b") as file:
            if file.tell() and not _ends_a_line(file):
                file.write(b"\n")  # a kill cut the last line short
            file.write(_line(row).encode())

    def _rows(self, name: str) -> list[dict[str, Any]]:
        file = self.folder / name
        rows: list[dict[str, Any]] = []
        for line in file.read_bytes().splitlines() if file.exists() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def rewind_history(self, last_round: int) -> None:
        """Forget the lines of rounds after ``last_round``: they will be run again."""
        kept = [row for row in self.history() if row["round"] <= last_round]
        self._write_text("history.jsonl", "".join(map(_line, kept)))

    def save_results(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Write what the report is made of: score counts, routing and coverage."""
        write_checkpoint(self.folder / "results", arrays, facts)

    def results(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What ``save_results`` wrote; raises CheckpointError where the run has not finished."""
        return read_checkpoint(self.folder / "results")

    def save_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write metrics.json."""
        self._write_text("metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")

    def metrics(self) -> dict[str, Any]:
        """What ``save_metrics`` wrote; raises CheckpointError where it cannot be read."""
        return self._read_json("metrics.json")

    def _read_json(self, name: str) -> dict[str, Any]:
        file = self.folder / name
        try:
            value = json.loads(file.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{file}: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise CheckpointError(f"{file}: not whole JSON") from None
        if not isinstance(value, dict):
            raise CheckpointError(f"{file}: not a JSON object")
        return value

    def _write_text(self, name: str, text: str) -> None:
        write_atomic(self.folder / name, text.encode(), PUBLIC_MODE)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, allow_nan=False) + "\n"


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
