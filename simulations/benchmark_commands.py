"""The commands ``flexmoe-sim benchmark ...``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from flexmoe_core.checkpoint import write_atomic
from flexmoe_core.settings import DEFAULT_PRESET
from server.run_store import PUBLIC_MODE
from server.settings import settings_with
from simulations.benchmark import STUDY, BenchmarkTerms, run_benchmark
from simulations.benchmark_options import Out, Overrides, Preset, Protocol, Seeds, Validation, parse_seeds
from simulations.benchmark_summary import summary_markdown
from simulations.datasets.commands import HeartProtocol
from simulations.datasets.uci_heart import prepare_uci_heart
from simulations.hidden_study import study_hidden
from simulations.results import write_summary
from simulations.tables import hidden_table, print_comparison
from simulations.variant_commands import variants

benchmark = typer.Typer(no_args_is_help=True, help="Measure on real hospitals what the federation is worth.")
benchmark.add_typer(variants, name="variants")


@benchmark.command("uci-heart")
def uci_heart(
    out: Out,
    protocol: Protocol = HeartProtocol.flamby,
    seeds: Seeds = "0-4",
    preset: Preset = DEFAULT_PRESET,
    overrides: Overrides = None,
    validation: Validation = 0.15,
    processes: Annotated[
        int, typer.Option(min=0, help="Seeds to run beside each other; 0 or 1: one after the other.")
    ] = 0,
) -> None:
    """Federated Flex-MoE against what a user would pick instead, on the same test patients.

    Writes results.jsonl, summary.md and a folder per seed. Run again, it goes on with the seeds that are not in
    results.jsonl yet.
    """
    console = Console()
    numbers = parse_seeds(seeds)
    terms = BenchmarkTerms(
        protocol=protocol.value, validation=validation, settings=settings_with(overrides or [], preset, seed=0)
    )
    results = []
    for result, is_new in run_benchmark(out, terms, numbers, processes):
        results.append(result)
        console.print(f"Seed {result.seed}" + ("" if is_new else ": already there"), highlight=False)
        if is_new:
            print_comparison(console, result.table)
    write_summary(console, out, summary_markdown(results))


@benchmark.command("hidden")
def hidden(
    out: Out,
    protocol: Protocol = HeartProtocol.flamby,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same result.")] = 0,
    preset: Preset = DEFAULT_PRESET,
    overrides: Overrides = None,
    validation: Validation = 0.15,
) -> None:
    """Hide modalities from UCI heart's test patients in every way: the learned bank against zero-fill.

    Trains the federation twice and writes hidden.json.
    """
    console = Console()
    settings = settings_with(overrides or [], preset, seed=seed)
    prepare_uci_heart(out / STUDY, protocol.value, seed, validation)
    with console.status("Training the federation with the learned bank and with zero-fill"):
        study = study_hidden(out / STUDY, out, settings)
    write_atomic(out / "hidden.json", (study.model_dump_json(indent=2) + "\n").encode(), PUBLIC_MODE)
    console.print(hidden_table(study))
    for name, combinations in study.untrained.items():
        console.print(
            f"[yellow]No training patient lacks {name}: its token in {combinations} combinations was never trained."
        )
    console.print(f"Results   {out / 'hidden.json'}", highlight=False)
