"""Is the missing-modality bank worth its place? The same federation with it and with zero-fill, modalities hidden."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from client.bundle import read_bundle
from flexmoe_core.intervals import paired_bootstrap_difference
from flexmoe_core.randomness import numpy_generator
from flexmoe_core.scores import FloatArray, IntArray
from flexmoe_core.validation import FrozenModel
from server.run_store import RunStore
from server.settings import RunSettings
from simulations.hidden_modalities import (
    HiddenPredictions,
    mean_auroc,
    pooled_auroc,
    predict_hidden,
    untrained_tokens,
)
from simulations.runs import simulate, site_bundle, site_folders

BANKS = ("table", "zero")
NEVER_TRAINED, TRAINED = "never trained", "trained"
MEASURES: Mapping[str, Callable[[FloatArray, IntArray], float | None]] = {
    "pooled AUROC": pooled_auroc,
    "mean AUROC": mean_auroc,
}


class HiddenMeasure(FrozenModel):
    """One measure over some combinations: with the bank, with zero-fill, and the difference's 95% interval.

    The interval is over patients, each with all combinations that the patient can show.
    """

    combinations: str
    count: int
    measure: str
    bank: float
    zero_fill: float
    difference: float
    low: float
    high: float


class HiddenStudy(FrozenModel):
    """``pairs`` of a patient and a combination were predicted, all of them with finite probabilities.

    ``untrained`` are the modalities by name for which the bank has a token that never received a gradient, and
    the number of combinations that would use it.
    """

    seed: int
    settings: RunSettings
    pairs: int
    measures: tuple[HiddenMeasure, ...]
    untrained: dict[str, int]


def study_hidden(study_folder: Path, out: Path, settings: RunSettings, resamples: int = 200) -> HiddenStudy:
    """Train twice below the folder ``out``, hide modalities from test patients in every way, and compare."""
    stores = {bank: simulate(study_folder, out / bank, with_bank(settings, bank)) for bank in BANKS}
    return compare_banks(study_folder, stores["table"], stores["zero"], resamples)


def compare_banks(study_folder: Path, bank: RunStore, zero: RunStore, resamples: int) -> HiddenStudy:
    """The comparison of two finished runs. Raises CheckpointError without their bundles."""
    learned, filled = predict_hidden(study_folder, bank), predict_hidden(study_folder, zero)
    sets = {NEVER_TRAINED: learned.never_trained, TRAINED: learned.table.masks}
    seed = bank.settings.seed
    measures = [
        found
        for name, masks in sets.items()
        for measure in MEASURES
        if (found := _measure(learned, filled, name, masks, measure, seed, resamples)) is not None
    ]
    first_site = next(iter(site_folders(study_folder)))
    tokens = untrained_tokens(read_bundle(site_bundle(bank, first_site)))
    names = bank.study.modality_names
    return HiddenStudy(
        seed=seed,
        settings=bank.settings,
        pairs=learned.pairs,
        measures=tuple(measures),
        untrained={name: uses for m, name in enumerate(names) if (uses := sum(own == m for _, own in tokens))},
    )


def with_bank(settings: RunSettings, bank: str) -> RunSettings:
    """The same settings with another bank."""
    model = settings.method.model.model_copy(update={"bank": bank})
    return settings.model_copy(update={"method": settings.method.model_copy(update={"model": model})})


def _measure(
    learned: HiddenPredictions,
    filled: HiddenPredictions,
    name: str,
    masks: tuple[int, ...],
    measure: str,
    seed: int,
    resamples: int,
) -> HiddenMeasure | None:
    compute, labels_B = MEASURES[measure], learned.labels_B
    values = compute(learned.of(masks), labels_B), compute(filled.of(masks), labels_B)
    generator = numpy_generator(seed, "hidden modalities", name, measure)
    found = paired_bootstrap_difference(
        compute, learned.of(masks), filled.of(masks), labels_B, generator, resamples=resamples
    )
    if values[0] is None or values[1] is None or found is None:
        return None
    difference, low, high = found
    return HiddenMeasure(
        combinations=name,
        count=len(masks),
        measure=measure,
        bank=values[0],
        zero_fill=values[1],
        difference=difference,
        low=low,
        high=high,
    )
