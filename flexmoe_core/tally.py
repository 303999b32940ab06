"""What the training steps of a round add up to: the loss, and how many patients are behind each part of the model.

Shapes: B patients, M modalities, S bank rows, L sparse layers, R routers of a layer, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import Placement
from flexmoe_core.model import FlexMoe, Output


class Tally:
    """Sums in units of patients, float64 on the model's device: a GPU never waits for them to be read."""

    def __init__(self, model: FlexMoe) -> None:
        modalities, device = len(model.modalities), model.position.device
        layers, routers, experts = len(model.sparse_layers), model.routers_per_layer, model.settings.experts

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.loss, self.incomplete = zeros(), zeros()
        self.observed_M, self.lacking_M, self.slots_S = zeros(modalities), zeros(modalities), zeros(model.bank.slots)
        self.routed_LRE, self.offered_LE = zeros(layers, routers, experts), zeros(layers, experts)
        self._bank = model.bank

    @torch.no_grad()
    def add(self, shown: Cohort, places: Placement, output: Output, teaches_B: Tensor | None, loss: Tensor) -> None:
        """Count a step: its mean loss, who showed and lacked what, and the routed tokens of who teaches experts."""
        self.loss += loss.double() * len(shown)
        self.incomplete += (~places.full_B).sum()
        self.observed_M += shown.observed_BM.sum(dim=0)
        self.add_lacking(shown, places)
        for layer, use in enumerate(output.use):
            routed_BRE = use.routed_BRE if teaches_B is None else use.routed_BRE * teaches_B[:, None, None]
            self.routed_LRE[layer] += routed_BRE.sum(dim=0)

    def add_lacking(self, shown: Cohort, places: Placement) -> None:
        """Count who uses which token of the bank."""
        self.lacking_M += (~shown.observed_BM).sum(dim=0)
        self.slots_S += self._bank.users(places.slots_BM, shown.observed_BM)

    def add_offered(self, layer: int, offered_E: Tensor) -> None:
        """Count who could choose each expert freely."""
        self.offered_LE[layer] += offered_E
