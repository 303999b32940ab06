"""The commands ``flexmoe-sim bench ...``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flexmoe_core.checkpoint import write_atomic
from flexmoe_core.devices import choose_device
from flexmoe_core.settings import MethodSettings, paper
from flexmoe_core.validation import FrozenModel
from server.run_store import PUBLIC_MODE
from simulations.bench.machine import Machine, this_machine
from simulations.bench.modalities import (
    BATCH,
    MODALITIES,
    MOST_COMBINATIONS,
    Cost,
    ModalitiesBench,
    measure_all,
    plot,
)
from simulations.bench.modalities import FEATURES as MODALITY_FEATURES
from simulations.bench.private import BATCH as PRIVATE_BATCH
from simulations.bench.private import PrivateBench, measure_private
from simulations.bench.secure import measure as measure_secure
from simulations.bench.steps import BATCHES, StepBench, StepTiming, time_steps
from simulations.bench.workload import FEATURES

bench = typer.Typer(no_args_is_help=True, help="Measure what training costs on this machine.")

Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write every figure to this file as well.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0: as many as PyTorch takes by itself.")]


@bench.command("step")
def step(
    json: Json = None,
    threads: Threads = 0,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Patients per step. Repeatable.")
    ] = None,
    modalities: Annotated[int, typer.Option(min=1, max=12, help="Tables of 100 features each.")] = 4,
    repetitions: Annotated[int, typer.Option(min=1, help="More are slower and steadier.")] = 15,
    devices: Annotated[
        list[str] | None, typer.Option("--device", help="cpu, cuda or cuda:1. Repeatable. [default: all kinds]")
    ] = None,
) -> None:
    """A whole training step (forward, losses, backward, optimizer) with the preset `paper`, against two yardsticks.

    Reference: the same sizes written plainly, one modality and one expert after the other, a bank of 2^M - 1 rows,
    plain Adam, in the same precision. Floor: the step's multiply-adds at the rate of a large matrix product. All
    three take turns, and a ratio is the median over turns, so a busy machine slows both of its sides.
    """
    _use_threads(threads)
    names = devices or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    chosen = [choose_device(name) for name in names]
    run_step_bench(Console(), paper(), json, chosen, batches or BATCHES, modalities, repetitions)


def run_step_bench(
    console: Console,
    settings: MethodSettings,
    json: Path | None,
    devices: Sequence[torch.device],
    batches: Sequence[int],
    modalities: int,
    repetitions: int,
) -> None:
    """The table, which fits 80 columns, and the file."""
    machine, steps = this_machine(), 3
    timings: list[StepTiming] = []
    found = time_steps(settings, devices, batches, modalities=modalities, repetitions=repetitions, steps=steps)
    with console.status("Timing training steps"):
        timings.extend(found)
    table = _table("Training step, milliseconds", "device", "batch")
    for name in ("ours", "reference", "floor", "speedup", "over floor"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in timings:
        table.add_row(
            f"{one.device} {one.precision}",
            str(one.batch),
            f"{one.ours_ms:.1f}",
            f"{one.reference_ms:.1f}",
            f"{one.floor_ms:.{1 if one.floor_ms >= 1 else 2}f}",
            f"[bold]{one.reference_over_ours:.2f}[/bold]",
            f"[bold]{one.ours_over_floor:.2f}[/bold]",
        )
    table.caption = "speedup: reference / ours; over floor: ours / floor"
    table.caption_justify = "left"
    _print(console, table, machine)
    result = StepBench(
        machine=machine,
        modalities=modalities,
        features=FEATURES,
        repetitions=repetitions,
        steps_per_repetition=steps,
        model=settings.model,
        timings=tuple(timings),
    )
    _write(console, result, json)


@bench.command("dp")
def dp(
    json: Json = None,
    threads: Threads = 0,
    batch: Annotated[int, typer.Option(min=1, help="Patients per step, in both.")] = PRIVATE_BATCH,
    repetitions: Annotated[int, typer.Option(min=1, help="More are slower and steadier.")] = 15,
    devices: Annotated[
        list[str] | None, typer.Option("--device", help="cpu, cuda or cuda:1. Repeatable. [default: all kinds]")
    ] = None,
) -> None:
    """A training step under patient-level privacy against the ordinary one, with the presets `small` and `paper`.

    Private: each patient's gradient clipped, the noise, the optimizer. Four tables of 100 features, float32. Both
    take turns, and the ratio is the median over turns, so a busy machine slows both. Memory is the peak resident set
    of a process of each one's own, on a GPU the peak that was allocated there.
    """
    _use_threads(threads)
    names = devices or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    chosen = [choose_device(name) for name in names]
    console, machine = Console(), this_machine()
    with console.status("Timing private steps"):
        costs = list(measure_private(chosen, batch, repetitions))
    table = _table(f"Training step at batch {batch}", "preset", "device")
    for name in ("ordinary", "private", "ratio", "memory", "private memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in costs:
        milliseconds = (f"{one.ordinary_ms:.1f} ms", f"{one.private_ms:.1f} ms", f"[bold]{one.ratio:.2f}[/bold]")
        memory = (f"{peak / 2**20:.0f} MiB" for peak in (one.ordinary_bytes, one.private_bytes))
        table.add_row(one.preset, one.device, *milliseconds, *memory)
    _print(console, table, machine)
    _write(console, PrivateBench(machine=machine, batch=batch, features=FEATURES, costs=tuple(costs)), json)


@bench.command("modalities")
def modalities(
    json: Json = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.svg", help="Draw the bank's parameters by modalities.")
    ] = None,
    threads: Threads = 0,
    counts: Annotated[
        list[int] | None, typer.Option("--modalities", min=1, max=60, help="Numbers of modalities. Repeatable.")
    ] = None,
    combinations: Annotated[int, typer.Option(min=1, help="Observed combinations at most.")] = MOST_COMBINATIONS,
) -> None:
    """What 4 to 30 modalities cost with the preset `paper`: the bank's parameters, a step at batch 32, and memory.

    Paper: the published bank, a row for each of the 2^M - 1 combinations (computed, not built). Memory is the peak
    resident set of a process that builds the patients and the model and trains some steps.
    """
    _use_threads(threads)
    console, machine = Console(), this_machine()
    with console.status("Training with more and more modalities"):
        costs = list(measure_all(counts or MODALITIES, combinations))
    table = _table("M modalities: parameters of the bank, step, memory", "M", "combinations", "bank")
    for name in ("paper's", "ours", "step", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in _cost_rows(costs):
        table.add_row(*row)
    _print(console, table, machine)
    result = ModalitiesBench(
        machine=machine, batch=BATCH, features=MODALITY_FEATURES, model=paper().model, costs=tuple(costs)
    )
    _write(console, result, json)
    if plot_file is not None:
        plot(costs, plot_file)
        console.print(f"Plot      {plot_file}", highlight=False)


@bench.command("secure")
def secure(
    json: Json = None,
    sites: Annotated[int, typer.Option(min=3, help="Sites in the sum.")] = 10,
    parameters: Annotated[int, typer.Option(min=64, help="Numbers of the shared model.")] = 1_300_000,
    repetitions: Annotated[int, typer.Option(min=1, help="Rounds; the figures are medians.")] = 5,
) -> None:
    """What masked sums cost one site in one round, beside the plain update: computation on one core, and bytes.

    Computation is keys, shares, masks and the answer that unmasks, files on the disk included, without waiting for
    the disk. Bytes are all that the site sends in the round; the coordinator's unmasking has one site dropped.
    """
    _use_threads(1)
    console, machine = Console(), this_machine()
    with console.status("Masking"):
        result = measure_secure(machine, sites, parameters, repetitions)
    title = f"One site's round: {sites} sites, threshold {result.threshold}, {parameters:,} parameters"
    table = _table(title, "update", "computation", "bytes sent")
    table.add_row("plain", f"{result.plain_s:.3f} s", f"{result.bytes_plain:,}")
    table.add_row("masked", f"{result.masked_s:.3f} s", f"{result.bytes_masked:,}")
    table.add_row("more", f"[bold]{result.added_s:.3f} s[/bold]", f"[bold]{result.ratio:.3f} times[/bold]")
    _print(console, table, machine)
    console.print(f"Received  {result.bytes_beside:,} bytes more than the plain request", highlight=False)
    console.print(f"Unmasking {result.coordinator_s:.3f} s at the coordinator", highlight=False)
    _write(console, result, json)


def _cost_rows(costs: list[Cost]) -> Iterator[tuple[str, ...]]:
    for one in costs:
        yield (
            str(one.modalities),
            f"{one.combinations:,}",
            one.bank,
            _count(one.paper_bank_parameters),
            _count(one.bank_parameters),
            f"{one.step_s:.3f} s",
            f"{one.resident_bytes / 2**30:.2f} GiB",
        )


def _count(number: int) -> str:
    """``1.9 M``, ``66 T``."""
    size, suffix = next(
        (size, suffix)
        for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
        if number >= size
    )
    return f"{number / size:.3g} {suffix}".rstrip()


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _print(console: Console, table: Table, machine: Machine) -> None:
    console.print(table)
    gpu = "" if machine.gpu is None else f", {machine.gpu}"
    text = f"{machine.cpu}, {machine.threads} threads{gpu}, torch {machine.torch}"
    console.print(f"\nMachine   {text}", highlight=False, markup=False)


def _write(console: Console, result: FrozenModel, path: Path | None) -> None:
    if path is not None:
        write_atomic(path, (result.model_dump_json(indent=2) + "\n").encode(), PUBLIC_MODE)
        console.print(f"Results   {path}", highlight=False)


def _use_threads(threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)
