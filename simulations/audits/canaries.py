"""Patients made to be noticed: each has an input of its own, and so a direction of the gradient of its own.

One hospital has ordinary patients, whose modality everybody shares, and canaries, who have a second one as well: as
many numbers as there are canaries, of which each canary has one. So canary i alone moves column i of that modality's
local encoder, and a number so large that the column holds nearly all of its gradient, which clipping then cuts.

Shapes: m canaries, B patients, M modalities, F inputs, O outputs of the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.model import FlexMoe, ModalityInput, build_model, encoder_key
from flexmoe_core.randomness import torch_generator
from flexmoe_core.scores import FloatArray
from flexmoe_core.settings import (
    CurriculumSettings,
    LossSettings,
    MethodSettings,
    ModelSettings,
    TrainingSettings,
    paper,
)
from simulations.audits.roc import BoolArray

Size = Literal["small", "paper"]
"""Of the model: a small one, or the published sizes."""
ORDINARY, CANARY = "records", "canary"
ENCODER = f"encoders.{encoder_key(CANARY)}.projection.weight"
FEATURES, CLASSES = 8, 2
LOUDNESS = 100.0
"""The one number of a canary: the gradient on its column is that many times the one on the encoder's bias."""
LEARNING_RATE = 0.1


@dataclass(frozen=True)
class Hospital:
    """All who could be there: the first ``canaries`` are canaries, all others are ordinary patients."""

    everybody: Cohort
    canaries: int
    table: CombinationTable

    def with_canaries(self, included: BoolArray) -> Cohort:
        """The patients who are there: ordinary ones, and the canaries that are ``included`` (m,)."""
        there_B = torch.ones(len(self.everybody), dtype=torch.bool)
        there_B[: self.canaries] = torch.from_numpy(included)
        return self.everybody.select(there_B.nonzero().squeeze(1))


def canary_hospital(canaries: int, ordinary: int, seed: int) -> Hospital:
    """Generated patients, labels at random: the same seed gives the same ones."""
    generator = torch_generator(seed, "canaries")
    patients = canaries + ordinary
    observed_BM = torch.ones(patients, 2, dtype=torch.bool)
    observed_BM[canaries:, 1] = False
    loud_BF = torch.zeros(patients, canaries)
    loud_BF[:canaries] = LOUDNESS * torch.eye(canaries)
    inputs = {ORDINARY: torch.randn(patients, FEATURES, generator=generator), CANARY: loud_BF}
    labels_B = torch.randint(CLASSES, (patients,), generator=generator)
    masks = {0b11: canaries, 0b01: ordinary}
    table = CombinationTable.build(2, 4, {"hospital": masks}, min_full=1)
    return Hospital(Cohort(inputs, observed_BM, labels_B), canaries, table)


def canary_settings(size: Size) -> MethodSettings:
    """The whole method, with plain steps: each change of a parameter is then a noised sum.

    No hidden layer stands between a canary's number and its column, and no dropout blurs its direction.
    """
    small = ModelSettings(
        tokens=16, width=8, heads=2, experts=4, active_experts=2, expert_width=8, dropout=0.0, output_scale=1.0
    )
    published = paper().model.model_copy(update={"encoder_hidden": 0, "dropout": 0.0})
    return MethodSettings(
        model=small if size == "small" else published,
        losses=LossSettings(balance=0.0, rehearsal=0.0),
        training=TrainingSettings(
            optimizer="sgd",
            learning_rate=LEARNING_RATE,
            weight_decay=0.0,
            bank_decay=0.0,
            batch_size=1 << 20,
            modality_dropout=0.0,
        ),
        curriculum=CurriculumSettings(generalize_rounds=0),
    )


def canary_model(hospital: Hospital, settings: MethodSettings) -> FlexMoe:
    """As the round begins: a guarantee holds for any start, and this one is quiet.

    Where canaries make loud tokens, the layers behind them have gradients as large as the encoder's; so its weights
    are zero at first.
    """
    inputs = [
        ModalityInput(ORDINARY, "embedding", (FEATURES,)),
        ModalityInput(CANARY, "embedding", (hospital.canaries,)),
    ]
    model = build_model((ORDINARY, CANARY), inputs, CLASSES, hospital.table, settings.model, seed=0)
    with torch.no_grad():
        model.get_parameter(ENCODER).zero_()
    return model


def directions(model: FlexMoe, hospital: Hospital) -> Tensor:
    """Each canary's descent direction on its own column (O, m), of unit length.

    One backward pass over all canaries gives it: a column's gradient is that of one canary, whoever else is there.
    """
    index_B = torch.arange(hospital.canaries)
    canaries = hospital.everybody.select(index_B)
    placement = hospital.table.place(canaries.masks_B)
    output = model(canaries, placement, specialize=True)
    objective = cross_entropy(output.logits_BY, canaries.labels_B, reduction="sum")
    gradient_OF: Tensor = torch.autograd.grad(objective, [model.get_parameter(ENCODER)])[0]
    length_F: Tensor = torch.linalg.vector_norm(gradient_OF, dim=0)
    return -gradient_OF / length_F.clamp(min=torch.finfo(gradient_OF.dtype).tiny)


def seen_by_auditor(before_OF: Tensor, after_OF: Tensor, direction_OF: Tensor, unit: float) -> FloatArray:
    """How far each column went in its canary's direction (m,), in units of one clipped gradient."""
    moved_F = ((after_OF - before_OF).double() * direction_OF.double()).sum(dim=0)
    return np.asarray(moved_F.numpy() / unit, dtype=np.float64)
