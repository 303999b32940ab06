"""Which rows of the shared tensors a site's patients could train, before any of them is trained.

Shapes: B patients, M modalities, S bank rows, L sparse layers, R routers of a layer, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.groups import Support, support_of
from flexmoe_core.model import FlexMoe


def trainable_rows(
    model: FlexMoe, cohort: Cohort, table: CombinationTable, names: Iterable[str]
) -> dict[str, np.ndarray]:
    """For each tensor, which rows have patients: bool (rows,).

    By the patients' modalities and combinations alone. With pinned experts, an expert has those whose combinations
    are its own, not others whom the router may send there; with learned ones, every expert may get anybody.
    """
    placement, observed_BM = table.place(cohort.masks_B), cohort.observed_BM
    incomplete = float((~placement.full_B).sum())
    layers, routers, experts = len(model.sparse_layers), model.routers_per_layer, model.settings.experts
    own_E = np.ones(experts)
    if model.settings.specialization == "pinned":
        own_E = torch.bincount(placement.expert_B, minlength=experts).double().numpy()
    support = Support(
        patients=float(len(cohort)),
        incomplete=incomplete,
        specialized=incomplete,
        modality_M=observed_BM.sum(dim=0).double().numpy(),
        lacking_M=(~observed_BM).sum(dim=0).double().numpy(),
        slots_S=model.bank.users(placement.slots_BM, observed_BM).numpy(),
        routed_LRE=np.broadcast_to(own_E, (layers, routers, experts)),
        offered_LE=np.broadcast_to(own_E, (layers, experts)),
    )
    return {name: np.asarray(support_of(name, support, model) > 0) for name in names}
