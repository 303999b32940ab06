"""Which rows of the shared tensors a site's patients could train, before any of them is trained.

Shapes: B patients, M modalities, S bank rows, L sparse layers, R routers of a layer, E experts.
"""

from __future__ import annotations

import numpy as np
import torch

from client.private_answers import declared_facts
from client.site_data import SiteData
from client.site_model import shared_values, untrained_model
from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.curriculum import RoundPlan, Stage
from flexmoe_core.groups import Support, specs_of, support_of
from flexmoe_core.messages import Terms
from flexmoe_core.model import FlexMoe
from flexmoe_core.update import TensorSpec


def trainable_rows(
    terms: Terms, table: CombinationTable, data: SiteData
) -> tuple[tuple[TensorSpec, ...], dict[str, np.ndarray]]:
    """The shared tensors of a run, and which rows of each this site could train: bool (rows,).

    Under patient-level privacy by declared facts, as patients may have no part in what is told of them.
    """
    model = untrained_model(terms, table, data)
    shared = shared_values(model, terms)
    if terms.privacy.patient is None:
        support = possible_support(model, data.cohorts["train"], table)
    else:
        support = declared_facts(data).support(model, table, RoundPlan(Stage.SPECIALIZE, ordered=False))
    specs = specs_of({name: model.get_parameter(name) for name in shared})
    return specs, {name: np.asarray(support_of(name, support, model) > 0) for name in shared}


def possible_support(model: FlexMoe, cohort: Cohort, table: CombinationTable) -> Support:
    """Whose patients could train what, by their modalities and combinations alone.

    With pinned experts, an expert has those whose combinations are its own, not others whom the router may send
    there; with learned ones, every expert may get anybody.
    """
    placement, observed_BM = table.place(cohort.masks_B), cohort.observed_BM
    incomplete = float((~placement.full_B).sum())
    layers, routers, experts = len(model.sparse_layers), model.routers_per_layer, model.settings.experts
    own_E = np.ones(experts)
    if model.settings.specialization == "pinned":
        own_E = torch.bincount(placement.expert_B, minlength=experts).double().numpy()
    return Support(
        patients=float(len(cohort)),
        incomplete=incomplete,
        specialized=incomplete,
        modality_M=observed_BM.sum(dim=0).double().numpy(),
        lacking_M=(~observed_BM).sum(dim=0).double().numpy(),
        slots_S=model.bank.users(placement.slots_BM, observed_BM).numpy(),
        routed_LRE=np.broadcast_to(own_E, (layers, routers, experts)),
        offered_LE=np.broadcast_to(own_E, (layers, experts)),
    )
