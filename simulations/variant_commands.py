"""The commands ``flexmoe-sim benchmark variants ...``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flexmoe_core.errors import InputError, Problem
from flexmoe_core.settings import DEFAULT_PRESET
from flexmoe_core.validation import suggestion
from server.settings import settings_with
from simulations.benchmark_data import DataSet, Digits, Synthetic, UciHeart
from simulations.benchmark_options import Out, Overrides, Preset, Protocol, Seeds, Validation, parse_seeds
from simulations.datasets.commands import HeartProtocol
from simulations.progress import job_progress
from simulations.results import write_summary
from simulations.variant_benchmark import JobResult, jobs_of, run_jobs
from simulations.variant_summary import variants_markdown
from simulations.variants import BASELINES, FLEX_MOE, LOCAL_ONLY, VARIANTS, title_of

ALL = ",".join(name for name in VARIANTS if name != FLEX_MOE)

variants = typer.Typer(
    no_args_is_help=True,
    help="Is each part of the method worth its place? The federation against itself with one part replaced.",
)

Names = Annotated[str, typer.Option("--variants", metavar="NAMES", help=f"Some of {ALL}.")]
Processes = Annotated[int, typer.Option(min=0, help="Jobs to run beside each other; 0 or 1: one after the other.")]
LocalOnly = Annotated[
    bool, typer.Option("--local-only/--no-local-only", help="Also what each site can do alone, which takes longest.")
]
MissingRates = Annotated[str, typer.Option("--missing", metavar="RATES", help="Chances to lack each modality.")]


@variants.command("uci-heart")
def uci_heart(
    out: Out,
    protocol: Protocol = HeartProtocol.flamby,
    seeds: Seeds = "0-4",
    names: Names = ALL,
    preset: Preset = DEFAULT_PRESET,
    overrides: Overrides = None,
    validation: Validation = 0.15,
    processes: Processes = 0,
    local_only: LocalOnly = True,
) -> None:
    """On UCI heart, with the test patients of a protocol.

    Writes results.jsonl and summary.md. Run again, it goes on with what is not in results.jsonl with the same
    settings.
    """
    data = UciHeart(protocol=protocol.value, validation=validation)
    _benchmark(out, [data], seeds, names, preset, overrides, processes, local_only)


@variants.command("multiple-features")
def multiple_features(
    out: Out,
    missing: MissingRates = "0,0.3,0.5,0.7",
    sites: Annotated[int, typer.Option(min=1, help="Number of sites, to which each digit is dealt evenly.")] = 8,
    seeds: Seeds = "0-4",
    names: Names = ALL,
    preset: Preset = "medium",
    overrides: Overrides = None,
    validation: Validation = 0.15,
    processes: Processes = 0,
    local_only: LocalOnly = False,
) -> None:
    """On 2,000 handwritten digits in six views, of which some are missing at random.

    Per seed another split, dealt anew; what is missing at one rate is missing at every higher one.
    """
    data = [Digits(sites=sites, missing=rate, validation=validation) for rate in parse_rates(missing)]
    _benchmark(out, data, seeds, names, preset, overrides, processes, local_only)


@variants.command("synthetic")
def synthetic(
    out: Out,
    missing: MissingRates = "0,0.3,0.5,0.7",
    sites: Annotated[int, typer.Option(min=1, help="Number of hospitals.")] = 4,
    modalities: Annotated[int, typer.Option(min=1, help="Number of modalities.")] = 4,
    patients_per_site: Annotated[int, typer.Option(min=1, help="Patients of each hospital, of all splits.")] = 150,
    seeds: Seeds = "0-4",
    names: Names = ALL,
    preset: Preset = DEFAULT_PRESET,
    overrides: Overrides = None,
    processes: Processes = 0,
    local_only: LocalOnly = False,
) -> None:
    """On generated patients, whose label needs every modality: another federation per seed."""
    data = [
        Synthetic(sites=sites, modalities=modalities, patients_per_site=patients_per_site, missing=rate)
        for rate in parse_rates(missing)
    ]
    _benchmark(out, data, seeds, names, preset, overrides, processes, local_only)


def parse_variants(text: str) -> list[str]:
    """The named variants in the order of ``VARIANTS``, the federation itself first; raises InputError."""
    named = [part.strip() for part in text.split(",") if part.strip()]
    problems = [
        Problem("--variants", name, "is not a variant", suggestion(name, list(VARIANTS)))
        for name in named
        if name not in VARIANTS
    ]
    if problems:
        raise InputError(problems)
    return [name for name in VARIANTS if name == FLEX_MOE or name in named]


def parse_rates(text: str) -> list[float]:
    """``0,0.3`` is 0.0, 0.3; raises InputError for anything else than numbers from 0 to below 1."""
    rates = []
    for part in text.split(","):
        try:
            rate = float(part)
        except ValueError:
            rate = -1.0
        if not 0 <= rate < 1:
            raise InputError([Problem("--missing", part, "is no chance from 0 to below 1", "Write 0,0.3,0.5.")])
        rates.append(rate)
    return list(dict.fromkeys(rates))


def _benchmark(
    out: Path,
    data: Sequence[DataSet],
    seeds: str,
    names: str,
    preset: str,
    overrides: list[str] | None,
    processes: int,
    local_only: bool,
) -> None:
    """Run all jobs and write their summary: also of what is there when one of them fails."""
    console = Console()
    methods = [*parse_variants(names), *(name for name in BASELINES if local_only or name != LOCAL_ONLY)]
    jobs = jobs_of(data, methods, parse_seeds(seeds), settings_with(overrides or [], preset, seed=0))
    results: list[JobResult] = []
    try:
        with job_progress(console, len(jobs)) as advance:
            for result, _ in run_jobs(out, jobs, processes):
                results.append(result)
                advance(f"{title_of(result.job.method)}, seed {result.job.seed}, {result.job.data.title}")
    finally:
        if results:
            ordered = sorted(results, key=lambda result: methods.index(result.job.method))
            write_summary(console, out, variants_markdown(ordered))
