"""Small cohorts, tables and models for the tests of the method.

Shapes: B patients, M modalities, F features of each modality.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.model import FlexMoe, ModalityInput, build_model
from flexmoe_core.settings import ModelSettings

FEATURES = 3
TINY: dict[str, Any] = {
    "tokens": 2,
    "width": 8,
    "heads": 2,
    "experts": 4,
    "active_experts": 2,
    "expert_width": 8,
    "dropout": 0.0,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def modality_names(modalities: int) -> tuple[str, ...]:
    return tuple(f"m{m}" for m in range(modalities))


def observed(masks: Sequence[int], modalities: int) -> Tensor:
    rows = [[bool(mask >> m & 1) for m in range(modalities)] for mask in masks]
    return torch.tensor(rows, dtype=torch.bool).reshape(-1, modalities)


def random_cohort(
    masks: Sequence[int], modalities: int, seed: int = 0, dtype: torch.dtype = torch.float64, classes: int = 2
) -> Cohort:
    """Patients with the given combinations; values and labels are random, unobserved rows zero."""
    observed_BM, draws = observed(masks, modalities), generator(seed)
    inputs = {
        name: torch.randn(len(masks), FEATURES, generator=draws, dtype=dtype) * observed_BM[:, m : m + 1]
        for m, name in enumerate(modality_names(modalities))
    }
    return Cohort(inputs, observed_BM, torch.randint(classes, (len(masks),), generator=draws))


def table_of(masks: Iterable[int], modalities: int, experts: int = 4, min_full: int = 1) -> CombinationTable:
    """The table of one site that announces ten patients of each combination."""
    return CombinationTable.build(modalities, experts, {"a": dict.fromkeys(masks, 10)}, min_full)


def tiny(**settings: object) -> ModelSettings:
    """Tiny sizes, except where another is given."""
    return ModelSettings.model_validate({**TINY, **settings})


def random_model(
    table: CombinationTable, seed: int = 0, dtype: torch.dtype = torch.float64, classes: int = 2, **settings: object
) -> FlexMoe:
    """A tiny model whose every parameter is random, so that nothing is hidden by a zero."""
    names = modality_names(table.modalities)
    inputs = [ModalityInput(name, "tabular", (FEATURES,)) for name in names]
    model = build_model(names, inputs, classes, table, tiny(**settings), seed).to(dtype)
    randomize(model, seed)
    return model


def randomize(model: nn.Module, seed: int = 0) -> None:
    draws = generator(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype) * 0.5)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter that learns by one, zero where the loss does not depend on it."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not loss.requires_grad:
        return {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(named.items(), found, strict=True)
    }


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
