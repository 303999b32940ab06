"""Our training step against the plain reference and against the floor, side by side in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Literal

import torch

from flexmoe_core.settings import MethodSettings, ModelSettings
from flexmoe_core.validation import FrozenModel
from simulations.bench.floor import MatrixProduct, multiply_adds, seconds
from simulations.bench.machine import Machine
from simulations.bench.workload import CLASSES, FEATURES, Step, Workload, build_workload, our_step, reference_step

Precision = Literal["float32", "bfloat16"]
BATCHES = (8, 32, 128)
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
WARM_UP = 3


class StepTiming(FrozenModel):
    """Medians over the repetitions: milliseconds of each, and ratios of what was timed in the same repetition.

    The reference computes in the same precision. ``peak`` is the rate of a large matrix product in 10^9
    multiply-adds per second.
    """

    device: str
    precision: Precision
    batch: int
    ours_ms: float
    reference_ms: float
    floor_ms: float
    peak: float
    reference_over_ours: float
    ours_over_floor: float


class StepBench(FrozenModel):
    """All timings of a run, and what they are of."""

    machine: Machine
    modalities: int
    features: int
    repetitions: int
    steps_per_repetition: int
    model: ModelSettings
    timings: tuple[StepTiming, ...]


def time_steps(
    settings: MethodSettings,
    devices: Sequence[torch.device],
    batches: Sequence[int] = BATCHES,
    precisions: Sequence[Precision] = PRECISIONS,
    modalities: int = 4,
    repetitions: int = 15,
    steps: int = 3,
) -> Iterator[StepTiming]:
    """One row after the other; every combination of modalities is equally frequent."""
    workload = build_workload(modalities, (1 << modalities) - 1, settings.model.experts)
    for device in devices:
        here = Workload(workload.cohort.to(device), workload.table)
        for precision in precisions:
            chosen = with_precision(settings, precision)
            for batch in batches:
                yield _time(here, chosen, precision, batch, repetitions, steps)


def with_precision(settings: MethodSettings, precision: Precision) -> MethodSettings:
    """The same settings, computed in another precision."""
    return settings.model_copy(update={"training": settings.training.model_copy(update={"precision": precision})})


def _time(
    workload: Workload, settings: MethodSettings, precision: Precision, batch: int, repetitions: int, steps: int
) -> StepTiming:
    device = workload.cohort.labels_B.device
    product = MatrixProduct(device, getattr(torch, precision))
    contenders: tuple[Callable[[], None], ...] = (
        our_step(workload, settings, batch),
        reference_step(workload, settings, batch),
        product,
    )
    observed = workload.cohort.observed_BM
    work = multiply_adds(settings.model, observed, FEATURES, CLASSES) * batch / len(observed)
    rows = list(interleaved(contenders, device, repetitions, steps))
    floors = [product_s * work / product.multiply_adds for _, _, product_s in rows]
    return StepTiming(
        device=device.type,
        precision=precision,
        batch=batch,
        ours_ms=1e3 * median(ours for ours, _, _ in rows),
        reference_ms=1e3 * median(reference for _, reference, _ in rows),
        floor_ms=1e3 * median(floors),
        peak=1e-9 * product.multiply_adds / median(product_s for _, _, product_s in rows),
        reference_over_ours=median(reference / ours for ours, reference, _ in rows),
        ours_over_floor=median(row[0] / floor for row, floor in zip(rows, floors, strict=True)),
    )


def interleaved(
    contenders: Sequence[Step], device: torch.device, repetitions: int, steps: int
) -> Iterator[tuple[float, ...]]:
    """Seconds of each contender, repetition by repetition, so that a busy machine slows all of them."""
    for contender in contenders:
        seconds(contender, device, WARM_UP)
    for _ in range(repetitions):
        times = []
        for contender in contenders:
            contender()  # The others have emptied the caches, as no training would.
            times.append(seconds(contender, device, steps))
        yield tuple(times)
