"""Runs of a real federation: submitted to the SuperLink, followed through their folder, resumed and stopped."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import UserConfigValue
from flwr.cli.build import build_fab_from_disk
from pydantic import Field

from flexmoe_core.app_folder import write_app_folder
from flexmoe_core.checkpoint import write_atomic
from flexmoe_core.errors import InputError, Problem, RunFailed
from flexmoe_core.validation import FrozenModel, validate
from server.deployment.control import FlowerRun, NoAnswer, control
from server.deployment.folder import PUBLIC_MODE, CoordinatorFolder
from server.deployment.invitation import study_of
from server.masked_rounds import require_maskable
from server.run_store import RunStore
from server.settings import RunSettings

SUBMISSION = "submission.json"
LOOK_S = 1.0
Observer = Callable[[Mapping[str, Any]], None]


class Submission(FrozenModel):
    """What the SuperLink was given last for a run: Flower's number of it, and the SHA-256 of the code."""

    flower_run: str = Field(pattern=r"^[0-9]{1,20}$")
    bundle: str


@dataclass(frozen=True)
class Deployment:
    """A coordinator's folder and the runs in it.

    A name of a run that cannot be one, and files that are not as they were written, raise InputError.
    """

    folder: CoordinatorFolder

    def require_superlink(self) -> None:
        """Raise NoAnswer where none is running, before a run is made that nobody would take."""
        with control(self.folder.settings.inside.port, self.folder.authority_certificate) as flower:
            flower.nodes()

    def create(self, name: str, settings: RunSettings) -> RunStore:
        """A new run with the folder's study, for the hospitals that are enrolled; raises InputError."""
        members = len(self.folder.roster.active)
        if settings.federation.quorum > members:
            what = f"is {settings.federation.quorum}, and {enrolled(members)}"
            raise InputError([Problem("federation.quorum", "", what, "Enroll more of them, or ask for fewer.")])
        study = study_of(self.folder)
        require_maskable(settings, study, members, "--set")
        return RunStore.create(self.folder.run_folder(name), study, settings)

    def open(self, name: str | None) -> RunStore:
        """A run by its name, or the latest; raises InputError where there is none."""
        if name is not None:
            return RunStore.open(self.folder.run_folder(name))
        folders = [file.parent for file in (self.folder.path / "runs").glob("*/run.json")]
        if not folders:
            remedy = f"Start one: flexmoe-server run {self.folder.path}"
            raise InputError([Problem(str(self.folder.path / "runs"), "", "holds no run", remedy)])
        return RunStore.open(max(folders, key=lambda folder: (folder / "run.json").stat().st_mtime))

    def submit(self, store: RunStore, resume: bool, expected: int) -> Submission:
        """Hand the run to the SuperLink, with the roster of now.

        Raises RunFailed, and InputError where the run is still going on.
        """
        with control(self.folder.settings.inside.port, self.folder.authority_certificate) as flower:
            before = submission_of(store)
            going = before and flower.run(int(before.flower_run))
            if going and not going.finished:
                remedy = f"Wait for it, or stop it: flexmoe-server stop {self.folder.path} --run {store.folder.name}"
                raise InputError([Problem(str(store.folder), "", f"is {going.status}", remedy)])
            store.save_roster(self.folder.roster)
            bundle = build_bundle()
            config: dict[str, UserConfigValue] = {
                "run-folder": str(store.folder.resolve()),
                "resume": resume,
                "expected-sites": expected,
            }
            run = flower.start_run(bundle, config)
        submission = Submission(flower_run=str(run), bundle=hashlib.sha256(bundle).hexdigest())
        text = submission.model_dump_json(indent=2) + "\n"
        write_atomic(store.folder / SUBMISSION, text.encode(), PUBLIC_MODE)
        return submission

    def state(self, store: RunStore) -> FlowerRun | None:
        """What Flower says of a run; None where it does not know it. Raises RunFailed."""
        submission = submission_of(store)
        if submission is None:
            return None
        with control(self.folder.settings.inside.port, self.folder.authority_certificate) as flower:
            return flower.run(int(submission.flower_run))

    def stop(self, store: RunStore) -> bool:
        """End a run; whether it was going on. It can be resumed. Raises RunFailed."""
        submission = submission_of(store)
        if submission is None:
            return False
        with control(self.folder.settings.inside.port, self.folder.authority_certificate) as flower:
            run = flower.run(int(submission.flower_run))
            return run is not None and not run.finished and flower.stop_run(run.run_id)

    def follow(self, store: RunStore, observe: Observer, tell: Callable[[str], None], events: int = 0) -> None:
        """Tell every event after the first ``events`` and every new round until the run has ended.

        Raises RunFailed unless it was finished in full.
        """
        rounds, lost = len(store.history()), False
        while True:
            try:
                run, lost = self._known_state(store), False
            except NoAnswer as error:
                run = None
                if not lost:
                    tell(f"{error} Waiting for it.")
                lost = True
            happened, history = store.events(), store.history()
            for row in (*happened[events:], *history[min(rounds, len(history)) :]):
                observe(row)
            events, rounds = len(happened), len(history)
            if run is not None and run.finished:
                require_finished(store, run)
                return
            time.sleep(LOOK_S)

    def _known_state(self, store: RunStore) -> FlowerRun:
        run = self.state(store)
        if run is None:
            resume = f"flexmoe-server resume {self.folder.path} --run {store.folder.name}"
            raise RunFailed(f"the SuperLink no longer knows {store.folder.name}. Continue it: {resume}")
        return run


def require_finished(store: RunStore, run: FlowerRun) -> None:
    """Raise RunFailed unless the run wrote its metrics: Flower calls a run completed that has trained nothing."""
    if run.status != "finished:completed" or not (store.folder / "metrics.json").is_file():
        details = run.details or "Flower gives no reason; logs/executor.log may"
        raise RunFailed(f"{store.folder.name} ended as {run.status}: {details}")


def enrolled(members: int) -> str:
    """How many hospitals there are, in words."""
    return f"{members} hospital{' is' if members == 1 else 's are'} enrolled"


def build_bundle() -> bytes:
    """The code of this installation as Flower hands it out: the same bytes for the same code."""
    with tempfile.TemporaryDirectory() as scratch:
        return build_fab_from_disk(write_app_folder(Path(scratch)))


def submission_of(store: RunStore) -> Submission | None:
    """What was submitted last for a run, if anything."""
    file = store.folder / SUBMISSION
    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        remedy = "Delete it; what it names may be going on still."
        raise InputError([Problem(str(file), "", "is not whole JSON", remedy)]) from None
    return validate(data, Submission, str(file))
