"""Patients of every kind of modality, chance that belongs to each of them, and their gradients by brute force.

Shapes: B patients, M modalities, V trainable values of a model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.model import FlexMoe, ModalityInput, build_model
from flexmoe_core.privacy.engine import Batch, PatientEngine
from flexmoe_core.privacy.patient_chance import uniform_lots
from flexmoe_core.rehearsal import CHANCE, hide_by_lots, rehearse
from flexmoe_core.settings import LossSettings, MethodSettings, ModelSettings, TrainingSettings
from tests.flexmoe_core.cohorts import generator, gradients, modality_names, observed, randomize

SHAPES = {"tabular": (3,), "embedding": (5,), "sequence": (4, 6), "volume": (8, 8, 9)}
CLASSES = 3


class FixedChance:
    """Each patient's own chance by his number, the same whoever else is there."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.patients = len(numbers)
        self._draws = [generator(1000 + number) for number in numbers]

    def words(self, count: int) -> Tensor:
        drawn = [torch.empty(count, dtype=torch.int64).random_(-(2**63), None, generator=g) for g in self._draws]
        return torch.stack(drawn)


class SeededSource:
    """Not secret at all."""

    secret = False

    def __init__(self, seed: int = 0) -> None:
        self._draws = generator(seed)

    def bits(self, count: int) -> Tensor:
        return torch.empty(count, dtype=torch.int64).random_(-(2**63), None, generator=self._draws)


def cohort_of(
    masks: Sequence[int], kinds: Sequence[str], seed: int = 0, dtype: torch.dtype = torch.float64
) -> Cohort:
    """Patients with the given combinations; values and labels are random, unobserved rows zero."""
    observed_BM, draws = observed(masks, len(kinds)), generator(seed)
    inputs = {}
    for m, (name, kind) in enumerate(zip(modality_names(len(kinds)), kinds, strict=True)):
        x = torch.randn(len(masks), *SHAPES[kind], generator=draws, dtype=dtype)
        if kind == "sequence":
            steps = torch.randint(SHAPES[kind][0] + 1, (len(masks), 1), generator=draws)
            present_BT = torch.arange(SHAPES[kind][0]) < steps
            x[..., 0] = 1.0
            x = x * present_BT[:, :, None]
        inputs[name] = x * observed_BM[:, m].reshape(-1, *(1,) * (x.dim() - 1))
    return Cohort(inputs, observed_BM, torch.randint(CLASSES, (len(masks),), generator=draws))


def model_of(
    table: CombinationTable, kinds: Sequence[str], model: ModelSettings, dtype: torch.dtype = torch.float64
) -> FlexMoe:
    """A model whose every parameter is random, so that nothing is hidden by a zero."""
    names = modality_names(len(kinds))
    inputs = [ModalityInput(name, kind, SHAPES[kind]) for name, kind in zip(names, kinds, strict=True)]
    built = build_model(names, inputs, CLASSES, table, model, 0).to(dtype)
    randomize(built)
    return built


def method_of(model: ModelSettings, rehearsal: float = 1.0, **training: object) -> MethodSettings:
    """Losses that all count, and one of balance, which must not."""
    return MethodSettings(
        model=model,
        losses=LossSettings(balance=0.5, specialization=0.7, rehearsal=rehearsal),
        training=TrainingSettings.model_validate({"modality_dropout": 0.0, **training}),
    )


def batch_of(cohort: Cohort, table: CombinationTable, taught_B: Tensor | None) -> Batch:
    return Batch(cohort, table.place(cohort.masks_B), taught_B)


def by_the_engine(engine: PatientEngine, batch: Batch, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Each patient's gradient (B, V) as the engine sums it, and its norm (B,) as the engine finds it."""
    with engine.tape.attached():
        found = engine.gradients(batch, FixedChance(numbers))
    one_BB = torch.eye(len(batch), dtype=torch.float64)
    sums = [engine.weighted_sum(found, one_B) for one_B in one_BB]
    return torch.stack(sums), engine.norms(found, len(batch))


def by_brute_force(
    model: FlexMoe, batch: Batch, table: CombinationTable, method: MethodSettings, specialize: bool, number: int
) -> Tensor:
    """A single patient's gradient (V,) through the ordinary forward pass."""
    assert len(batch) == 1
    chance, losses = FixedChance([number]), method.losses
    shown, places, modalities = batch.cohort, batch.places, batch.cohort.observed_BM.shape[1]
    if method.training.modality_dropout > 0:
        shown = hide_by_lots(shown, method.training.modality_dropout, uniform_lots(chance, modalities))
        places = table.place(shown.masks_B)
    rehearses = losses.rehearsal > 0 and model.bank.learns
    hidden = hide_by_lots(batch.cohort, CHANCE, uniform_lots(chance, modalities)) if rehearses else None
    # Encoders that drop something would draw less for a patient who lacks their modality.
    fixed = method.model.encoder_dropout > 0
    output = model(
        shown,
        places,
        specialize=specialize,
        teaches_experts_B=batch.taught_B,
        generator=chance,
        fixed_shapes=fixed,
    )
    loss = cross_entropy(output.logits_BY, shown.labels_B)
    loss = loss + losses.specialization * output.losses.specialization
    if hidden is not None:
        rehearsed = rehearse(model, hidden, table.place(hidden.masks_B), specialize, chance, fixed)
        loss = loss + losses.rehearsal * rehearsed
    return torch.cat([gradient.flatten() for gradient in gradients(model, loss).values()])
