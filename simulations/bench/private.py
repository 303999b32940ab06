"""What patient-level privacy costs a training step: time side by side in one run, and the memory of each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from statistics import median
from types import MappingProxyType

import torch

from flexmoe_core.settings import PRESETS, MethodSettings
from flexmoe_core.validation import FrozenModel
from simulations.bench.floor import seconds
from simulations.bench.machine import Machine
from simulations.bench.modalities import peak_resident_bytes
from simulations.bench.steps import WARM_UP, interleaved
from simulations.bench.workload import Step, Workload, build_workload, our_step, private_step

BATCH = 64
CHOSEN = ("small", "paper")
MODALITIES = 4
STEPS = 3

CONTENDERS: Mapping[str, Callable[[Workload, MethodSettings, int], Step]] = MappingProxyType(
    {"ordinary": our_step, "private": private_step}
)


class PrivateCost(FrozenModel):
    """Medians over the repetitions in milliseconds; ``ratio`` is the median of private / ordinary in the same one.

    Bytes are the peak resident set of a process that takes such steps alone, on a GPU the peak of what it allocated.
    """

    preset: str
    device: str
    ordinary_ms: float
    private_ms: float
    ratio: float
    ordinary_bytes: int
    private_bytes: int


class PrivateBench(FrozenModel):
    """All rows of a run, and what they are of."""

    machine: Machine
    batch: int
    features: int
    costs: tuple[PrivateCost, ...]


def measure_private(devices: Sequence[torch.device], batch: int, repetitions: int) -> Iterator[PrivateCost]:
    """A row for each preset on each device."""
    for device, preset in product(devices, CHOSEN):
        ordinary_bytes, private_bytes = (_memory_of(name, preset, device, batch) for name in CONTENDERS)
        steps = [step_of(name, preset, device, batch) for name in CONTENDERS]
        rows = list(interleaved(steps, device, repetitions, STEPS))
        yield PrivateCost(
            preset=preset,
            device=str(device),
            ordinary_ms=1e3 * median(ordinary for ordinary, _ in rows),
            private_ms=1e3 * median(private for _, private in rows),
            ratio=median(private / ordinary for ordinary, private in rows),
            ordinary_bytes=ordinary_bytes,
            private_bytes=private_bytes,
        )


def step_of(contender: str, preset: str, device: torch.device, batch: int) -> Step:
    """A step of either kind, on patients whose combinations are equally frequent."""
    settings = PRESETS[preset]()
    workload = build_workload(MODALITIES, (1 << MODALITIES) - 1, settings.model.experts)
    return CONTENDERS[contender](Workload(workload.cohort.to(device), workload.table), settings, batch)


def _memory_of(contender: str, preset: str, device: torch.device, batch: int) -> int:
    """In a process of its own, because a process does not forget its peak."""
    facts = (contender, preset, str(device), str(batch), str(torch.get_num_threads()))
    command = [sys.executable, "-m", __name__, *facts]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def _main(contender: str, preset: str, device_name: str, batch: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    device = torch.device(device_name)
    seconds(step_of(contender, preset, device, int(batch)), device, WARM_UP + STEPS)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes()
    sys.stdout.write(f"{peak}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
