"""The command ``flexmoe-sim audit presence``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from flexmoe_core.errors import InputError, Problem
from flexmoe_core.settings import DEFAULT_PRESET
from server.settings import RunSettings, settings_with
from simulations.audits.options import (
    Data,
    DataName,
    Missing,
    Modalities,
    PatientsPerSite,
    Processes,
    Seed,
    Sites,
    data_of,
)
from simulations.audits.output import show_and_write
from simulations.audits.presence_audit import PresenceResult, PresenceRun, audit_presence
from simulations.audits.presence_report import presence_report, protected_of
from simulations.audits.protection import protection_of
from simulations.benchmark_options import Out, Overrides, Preset
from simulations.progress import job_progress
from simulations.results import RESULTS, read_lines


def presence(
    out: Out,
    data: Data = DataName.uci_heart,
    federations: Annotated[int, typer.Option(min=1, help="How many to overhear, each with another seed.")] = 5,
    preset: Preset = DEFAULT_PRESET,
    overrides: Overrides = None,
    seed: Seed = 0,
    processes: Processes = 0,
    sites: Sites = 8,
    modalities: Modalities = 4,
    patients_per_site: PatientsPerSite = 40,
    missing: Missing = 0.3,
) -> None:
    """Which combinations of modalities does a hospital have? Guessed from its updates, and from their sum alone.

    The sum is what secure aggregation leaves. Also counts rows of updates that are exactly zero, which give away
    with certainty what a hospital lacks. Run again with the same --out and a protection, such as --set
    privacy.patient.epsilon=8, it adds that one to the same tables. Writes audit.html, audit.md, CSV files and
    roc.png and roc.svg.
    """
    chosen = data_of(data, sites, modalities, patients_per_site, missing)
    settings = settings_with(overrides or [], preset, seed)
    _require_updates(settings)
    runs = [
        PresenceRun(data=chosen, settings=settings.model_copy(update={"seed": seed + place}))
        for place in range(federations)
    ]
    console = Console()
    with job_progress(console, len(runs)) as advance:
        for result in audit_presence(out, runs, processes):
            advance(f"seed {result.run.settings.seed}, {protection_of(settings.privacy)}")
    kept = [one for one in read_lines(out / RESULTS, PresenceResult) if one.run.data == chosen]
    show_and_write(console, out, presence_report(protected_of(kept)))


def _require_updates(settings: RunSettings) -> None:
    if settings.privacy.secure_aggregation is not None:
        remedy = "Leave it out: what it reveals is the sum of plain updates, which is always audited as well."
        what = "hides the updates that this audit adds up itself"
        raise InputError([Problem("--set", "privacy.secure_aggregation", what, remedy)])
