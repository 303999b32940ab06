"""What many modalities cost: the published bank's size against ours, a training step, and the memory of a process."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Literal, get_args

import torch

from flexmoe_core.settings import MethodSettings, ModelSettings, paper
from flexmoe_core.validation import FrozenModel
from simulations.bench.floor import seconds
from simulations.bench.machine import Machine
from simulations.bench.workload import build_our_model, build_workload, our_step

Bank = Literal["table", "compositional"]
BANKS: tuple[Bank, ...] = get_args(Bank)
MODALITIES = (4, 6, 8, 10, 12, 16, 20, 30)
MOST_COMBINATIONS = 2000
BATCH = 32
FEATURES = 20
TIMED_STEPS = 5
STATUS = Path("/proc/self/status")


class Cost(FrozenModel):
    """One bank with one number of modalities: parameters, median seconds of a step, peak resident set in bytes."""

    modalities: int
    combinations: int
    bank: Bank
    bank_parameters: int
    paper_bank_parameters: int
    parameters: int
    step_s: float
    resident_bytes: int


class ModalitiesBench(FrozenModel):
    """All rows of a run, and what they are of."""

    machine: Machine
    batch: int
    features: int
    model: ModelSettings
    costs: tuple[Cost, ...]


def paper_bank_parameters(modalities: int, model: ModelSettings) -> int:
    """The published bank: a slot for each modality in each of the 2^M - 1 combinations."""
    return ((1 << modalities) - 1) * modalities * model.tokens * model.width


def with_bank(settings: MethodSettings, bank: Bank) -> MethodSettings:
    """The same settings with another bank."""
    return settings.model_copy(update={"model": settings.model.model_copy(update={"bank": bank})})


def measure_all(
    modalities: Sequence[int] = MODALITIES, combinations: int = MOST_COMBINATIONS, banks: Sequence[Bank] = BANKS
) -> Iterator[Cost]:
    """Each row in a process of its own, because a process does not forget its peak."""
    for count in modalities:
        for bank in banks:
            command = [
                sys.executable,
                "-m",
                __name__,
                str(count),
                str(combinations),
                bank,
                str(torch.get_num_threads()),
            ]
            answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            yield Cost.model_validate_json(answer.splitlines()[-1])


def measure(modalities: int, combinations: int, bank: Bank, settings: MethodSettings, batch: int = BATCH) -> Cost:
    """One row, in this process."""
    settings = with_bank(settings, bank)
    workload = build_workload(modalities, combinations, settings.model.experts, patients=2048, features=FEATURES)
    model = build_our_model(workload, settings)
    step = our_step(workload, settings, batch)
    cpu = torch.device("cpu")
    step()
    times = [seconds(step, cpu) for _ in range(TIMED_STEPS)]
    return Cost(
        modalities=modalities,
        combinations=min(combinations, 2**modalities - 1),
        bank=bank,
        bank_parameters=sum(parameter.numel() for parameter in model.bank.parameters()),
        paper_bank_parameters=paper_bank_parameters(modalities, settings.model),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        step_s=median(times),
        resident_bytes=peak_resident_bytes(),
    )


def peak_resident_bytes() -> int:
    """Of this process so far; the kernel counts in kibibytes, that of macOS in bytes."""
    if STATUS.exists():  # Linux gives a new process the ``ru_maxrss`` of the one that started it
        found = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(found.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def plot(costs: Sequence[Cost], path: Path) -> None:
    """Bank parameters by modalities as SVG, readable on light and on dark ground."""
    import matplotlib  # noqa: PLC0415  (a second's import that only this function needs)
    from matplotlib.figure import Figure  # noqa: PLC0415

    gray = "#808080"
    series = {"paper: every combination": {c.modalities: c.paper_bank_parameters for c in costs}}
    for bank in BANKS:
        series[f"{bank}: what is observed"] = {c.modalities: c.bank_parameters for c in costs if c.bank == bank}
    with matplotlib.rc_context({"svg.hashsalt": "flexmoe", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for (label, points), color, marker in zip(
            series.items(), ("#d1495b", "#2a9d8f", "#4d8fd6"), "os^", strict=True
        ):
            axes.plot(list(points), list(points.values()), color=color, marker=marker, label=label)
        axes.set_yscale("log")
        axes.set_xlabel("modalities", color=gray)
        axes.set_ylabel("parameters of the bank", color=gray)
        axes.tick_params(which="both", colors=gray)
        axes.grid(color=gray, alpha=0.25)
        for spine in axes.spines.values():
            spine.set_color(gray)
        axes.legend(frameon=False, labelcolor=gray)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})


def _main(modalities: str, combinations: str, name: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    bank = next(bank for bank in BANKS if bank == name)
    cost = measure(int(modalities), int(combinations), bank, paper())
    sys.stdout.write(cost.model_dump_json() + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
