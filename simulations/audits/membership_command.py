"""The command ``flexmoe-sim audit membership``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from flexmoe_core.settings import DEFAULT_PRESET
from server.settings import settings_with
from simulations.audits.membership_report import attacked_of, membership_report
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
from simulations.audits.protection import protection_of
from simulations.audits.shadows import ShadowResult, shadows_of, train_shadows
from simulations.benchmark_options import Out, Overrides, Preset
from simulations.progress import job_progress
from simulations.results import RESULTS, read_lines


def membership(
    out: Out,
    data: Data = DataName.uci_heart,
    shadows: Annotated[
        int, typer.Option(min=6, help="Federations to train; each is attacked with the help of the others.")
    ] = 16,
    preset: Preset = DEFAULT_PRESET,
    overrides: Overrides = None,
    seed: Seed = 0,
    processes: Processes = 0,
    sites: Sites = 4,
    modalities: Modalities = 4,
    patients_per_site: PatientsPerSite = 150,
    missing: Missing = 0.3,
) -> None:
    """Was a patient in the training data? Loss threshold and likelihood ratio (LiRA) against the released model.

    Every federation is trained on a random half of each hospital's patients; the other halves are the non-members.
    Run again with the same --out, it goes on with what is not in results.jsonl; with a protection, such as --set
    privacy.patient.epsilon=8, it adds that one to the same tables. Writes audit.html, audit.md, CSV files and
    roc.png and roc.svg.
    """
    chosen = data_of(data, sites, modalities, patients_per_site, missing)
    settings = settings_with(overrides or [], preset, seed)
    console, jobs = Console(), shadows_of(chosen, settings, shadows)
    with job_progress(console, len(jobs)) as advance:
        for result, _ in train_shadows(out, jobs, processes):
            advance(f"federation {result.shadow.number + 1}, {protection_of(settings.privacy)}")
    kept = [
        one
        for one in read_lines(out / RESULTS, ShadowResult)
        if (one.shadow.data, one.shadow.settings.seed) == (chosen, seed)
    ]
    show_and_write(console, out, membership_report(chosen, chosen.load(seed), attacked_of(kept)))
