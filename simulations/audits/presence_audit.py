"""The presence audit: one federation is overheard, and every attack guesses at every round and site.

A federation is a line of results.jsonl; one that has its line, with the same data and settings, is not run again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from client.site_data import SiteData
from flexmoe_core.update import Update
from flexmoe_core.validation import FrozenModel
from server.settings import RunSettings
from simulations.audits.coordinator_view import PLAIN, SUMMED, View, listen, summed_view
from simulations.audits.data import AuditData, with_declared_combinations
from simulations.audits.presence import ATTACKS, PublicModel, zero_rows
from simulations.audits.shadows import ReleasedModel
from simulations.baselines.predictions import read_sites
from simulations.datasets.site_folders import write_site_folders
from simulations.results import RESULTS, run_kept
from simulations.runs import site_folders


class PresenceRun(FrozenModel):
    """One federation to overhear; its patients follow from the settings' seed."""

    data: AuditData
    settings: RunSettings


class Question(FrozenModel):
    """Does the site have patients of this combination, for which it declares the modalities? ``patients`` it has.

    ``announced`` says that the handshake told the coordinator already.
    """

    site: str
    combination: int
    patients: int
    announced: bool


class Guess(FrozenModel):
    """The scores of one attack for all questions, in one round, given a view."""

    view: str
    attack: str
    round: int
    scores: tuple[float, ...]


class Silence(FrozenModel):
    """The exact-zero-row test of one site in one round, given a view: ``exposed`` of its ``absent`` questions."""

    view: str
    site: str
    round: int
    rows: int
    zero: int
    absent: int
    exposed: int


class PresenceResult(FrozenModel):
    """All that an attacker guessed of one federation."""

    run: PresenceRun
    combinations: dict[int, tuple[str, ...]]
    questions: tuple[Question, ...]
    guesses: tuple[Guess, ...]
    silences: tuple[Silence, ...]


def audit_presence(out: Path, runs: Sequence[PresenceRun], processes: int = 0) -> Iterator[PresenceResult]:
    """Each federation's result as soon as it is there, stored ones first. Raises InputError and what a run raises."""
    kept = run_kept(out / RESULTS, overhear, runs, PresenceResult, lambda result: result.run, processes)
    yield from (result for result, _ in kept)


def overhear(run: PresenceRun) -> PresenceResult:
    """Write the site folders, run the federation, and attack every round after the generalize stage."""
    pooled = with_declared_combinations(run.data.load(run.settings.seed))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "hospitals"
        write_site_folders(folder, pooled)
        store, rounds = listen(folder, Path(scratch) / "run", run.settings)
        released = ReleasedModel.of_run(store)
        sites = read_sites(site_folders(folder), pooled.study)
    public = PublicModel(released.model, released.table, run.settings.method)
    questions = tuple(_questions(public, sites, run.settings.federation.min_cell))
    first = min(run.settings.method.curriculum.generalize_rounds + 1, run.settings.federation.rounds)
    attacked = {number: updates for number, updates in rounds.items() if number >= first}
    return PresenceResult(
        run=run,
        combinations={mask: pooled.study.names_of(mask) for mask in public.table.masks},
        questions=questions,
        guesses=tuple(
            guess for number, seen in attacked.items() for guess in _guesses(public, questions, number, seen)
        ),
        silences=tuple(
            one for number, seen in attacked.items() for one in _silences(public, questions, number, seen)
        ),
    )


def _questions(public: PublicModel, sites: Mapping[str, SiteData], min_cell: int) -> Iterator[Question]:
    """Of each site, the combinations that its declared modalities allow; who has everything is declared as well."""
    full = public.table.full_mask
    for site, data in sites.items():
        declared = sum(1 << public.model.modalities.index(name) for name in data.modalities)
        masks_B = data.cohorts["train"].masks_B
        for mask in public.table.masks:
            if mask != full and mask & ~declared == 0:
                patients = int((masks_B == mask).sum())
                announced = patients >= min_cell
                yield Question(site=site, combination=mask, patients=patients, announced=announced)


def _views(public: PublicModel, updates: Mapping[str, Update]) -> dict[str, View]:
    return {PLAIN: updates, SUMMED: summed_view(updates, public.specs)}


def _guesses(
    public: PublicModel, questions: tuple[Question, ...], number: int, updates: Mapping[str, Update]
) -> Iterator[Guess]:
    places = {mask: place for place, mask in enumerate(public.table.masks)}
    for name, view in _views(public, updates).items():
        for title, attack in ATTACKS.items():
            of_site = {site: attack(public, update) for site, update in view.items()}
            scores = tuple(
                float(of_site[one.site][places[one.combination]]) for one in questions if one.site in of_site
            )
            if len(scores) == len(questions):
                yield Guess(view=name, attack=title, round=number, scores=scores)


def _silences(
    public: PublicModel, questions: tuple[Question, ...], number: int, updates: Mapping[str, Update]
) -> Iterator[Silence]:
    for name, view in _views(public, updates).items():
        for site, update in view.items():
            found = zero_rows(public, update)
            absent = {one.combination for one in questions if one.site == site and one.patients == 0}
            exposed = absent.intersection(found.absent)
            yield Silence(
                view=name,
                site=site,
                round=number,
                rows=found.rows,
                zero=found.zero,
                absent=len(absent),
                exposed=len(exposed),
            )
