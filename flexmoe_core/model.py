"""Flex-MoE: encoders, missing-modality bank, trunk with a mixture of experts, and head.

The whole idea in ``FlexMoe.forward``: observed modalities are encoded, missing ones come from the bank, all tokens
attend to each other and choose experts, and the pooled tokens of each modality are classified together.

Shapes: B patients, M modalities, C = B*M of both, P tokens per modality, N = M*P tokens, D width, F features,
Y classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flexmoe_core.bank import build_bank
from flexmoe_core.chance import Chance
from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable, Placement
from flexmoe_core.dropout import dropout
from flexmoe_core.encoders.registry import build_encoder
from flexmoe_core.losses import RoutingLosses
from flexmoe_core.mixture import ExpertUse, RoutingPlan
from flexmoe_core.pooling import build_pooling
from flexmoe_core.randomness import torch_generator
from flexmoe_core.router import Router
from flexmoe_core.settings import ModelSettings
from flexmoe_core.trunk import TrunkLayer, is_sparse

OUTPUT_LAYERS = ("project_out", "contract", "head")
"""Linear layers that write into the residual stream or the logits; experts scale theirs themselves."""


@dataclass(frozen=True)
class ModalityInput:
    """What an encoder must be built for: ``shape`` is one patient's input."""

    name: str
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Output:
    """Class logits (B, Y), the summed routing losses, and the use of experts of each sparse layer."""

    logits_BY: Tensor
    losses: RoutingLosses
    use: tuple[ExpertUse, ...]


class FlexMoe(nn.Module):
    """One network for any combination of modalities.

    ``inputs`` are the modalities that this site can encode, ``modalities`` all names in the study's order.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        inputs: Sequence[ModalityInput],
        classes: int,
        table: CombinationTable,
        settings: ModelSettings,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.modalities, self.settings = tuple(modalities), settings
        count, tokens, width = len(self.modalities), settings.tokens, settings.width
        self.encoders = nn.ModuleDict({encoder_key(i.name): build_encoder(i.kind, i.shape, settings) for i in inputs})
        self.bank = build_bank(count, len(table.slots), settings)
        scale = width**-0.5
        self.position = nn.Parameter(torch.randn(count * tokens, width, generator=generator) * scale)
        self.imputed = nn.Parameter(torch.zeros(width))
        self.layers = nn.ModuleList(
            TrunkLayer(settings, is_sparse(layer), generator, count) for layer in range(settings.layers)
        )
        self.norm = nn.LayerNorm(width) if settings.final_norm else nn.Identity()
        self.pooling = build_pooling(count, settings)
        self.head = nn.Linear(self.pooling.out_width, classes)
        _initialize_layers(self, settings.output_scale, generator)

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """Positions of the layers that hold experts; none where every feed-forward is dense."""
        if not self.settings.routed_experts:
            return ()
        return tuple(layer for layer in range(len(self.layers)) if is_sparse(layer))

    @property
    def routers(self) -> tuple[Router, ...]:
        """The router of each sparse layer, which may be one for each modality."""
        return tuple(module for module in self.modules() if isinstance(module, Router))

    @property
    def routers_per_layer(self) -> int:
        """One for all modalities, or one for each."""
        return len(self.modalities) if self.settings.router == "modality" else 1

    def forward(
        self,
        cohort: Cohort,
        placement: Placement,
        *,
        specialize: bool,
        teaches_experts_B: Tensor | None = None,
        generator: Chance | None = None,
        fixed_shapes: bool = False,
    ) -> Output:
        """Logits for a batch of any size.

        ``specialize`` routes incomplete patients to their combination's expert. Where ``teaches_experts_B`` (bool)
        is given, the others' gradients reach neither experts nor router. Dropout and gate noise are drawn only
        with a generator: without one the output depends on nothing but weights and batch. With ``fixed_shapes`` no
        shape depends on who observed what, as a recording needs it.
        """
        x_BND = self.tokens(cohort, placement, generator, fixed_shapes)
        specialized_B = ~placement.full_B if specialize else torch.zeros_like(placement.full_B)
        plan = RoutingPlan(placement.expert_B, specialized_B, teaches_experts_B)
        zero = x_BND.new_zeros(())
        losses, use = RoutingLosses(zero, zero), []
        for layer in self.layers:
            x_BND, layer_losses, layer_use = layer(x_BND, plan, generator)
            if layer_losses is not None:
                losses = losses + layer_losses
                use.append(layer_use)
        pooled = dropout(self.pooling(self.norm(x_BND)), self.settings.dropout, generator)
        return Output(self.head(pooled), losses, tuple(use))

    def tokens(
        self, cohort: Cohort, placement: Placement, generator: Chance | None, fixed_shapes: bool = False
    ) -> Tensor:
        """(B, N, D): encoders for observed modalities, the bank for missing ones.

        Encoders see observed rows only; with ``fixed_shapes`` all, and what they make of the others is dropped.
        """
        x_BMPD = self.bank(placement.slots_BM, cohort.observed_BM) + self.imputed[..., None, None, :]
        x_CPD = (self._encode_all if fixed_shapes else self._encode_observed)(x_BMPD, cohort, generator)
        return x_CPD.reshape(x_BMPD.shape).flatten(1, 2) + self.position

    def _encode_observed(self, x_BMPD: Tensor, cohort: Cohort, generator: Chance | None) -> Tensor:
        places, encoded = [], []
        for m, name in enumerate(self.modalities):
            if encoder_key(name) in self.encoders and name in cohort.inputs:
                index_S = cohort.observed_BM[:, m].nonzero().squeeze(1)
                places.append(index_S * len(self.modalities) + m)
                encoded.append(self.encoders[encoder_key(name)](cohort.inputs[name][index_S], generator))
        x_CPD: Tensor = x_BMPD.flatten(0, 1)
        if encoded:
            x_CPD = x_CPD.index_copy(0, torch.cat(places), torch.cat(encoded).to(x_CPD.dtype))
        return x_CPD

    def _encode_all(self, x_BMPD: Tensor, cohort: Cohort, generator: Chance | None) -> Tensor:
        columns = list(x_BMPD.unbind(dim=1))
        for m, name in enumerate(self.modalities):
            if encoder_key(name) in self.encoders and name in cohort.inputs:
                encoded_BPD = self.encoders[encoder_key(name)](cohort.inputs[name], generator)
                observed_B11 = cohort.observed_BM[:, m, None, None]
                columns[m] = torch.where(observed_B11, encoded_BPD.to(x_BMPD.dtype), columns[m])
        return torch.stack(columns, dim=1)


def encoder_key(modality: str) -> str:
    """Where a modality's encoder is kept: a name that no attribute of a module has, as "type" or "values" would."""
    return f"{modality}-encoder"


def build_model(
    modalities: Sequence[str],
    inputs: Sequence[ModalityInput],
    classes: int,
    table: CombinationTable,
    settings: ModelSettings,
    seed: int,
) -> FlexMoe:
    """A freshly initialized model: the same seed gives the same weights everywhere."""
    generator = torch_generator(seed, "weights")
    # Layers of torch draw from the global generator when they are built; isolating it keeps both clean.
    with torch.random.fork_rng(devices=[]):
        return FlexMoe(modalities, inputs, classes, table, settings, generator)


def load_parameters(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy the named tensors into the model, in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


def _initialize_layers(model: nn.Module, output_scale: float, generator: torch.Generator) -> None:
    """Draw linear layers and convolutions from the given generator, biases at zero, output layers at their scale."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            scale = output_scale if name.endswith(OUTPUT_LAYERS) else 1.0
            inputs = module.weight[0].numel()
            nn.init.trunc_normal_(module.weight, std=scale * inputs**-0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
