"""What a site's declared facts say of its update, in place of its patients: who trains what, and with which weight.

A count of patients is private, so under patient-level privacy every weight is the declared size, or zero where the
site has declared that it cannot have anything to say.

Shapes: M modalities, S bank rows, L sparse layers, R routers of a layer, E experts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from flexmoe_core.bank import CompositionalBank
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.curriculum import RoundPlan, Stage
from flexmoe_core.groups import Group, Support, group_of
from flexmoe_core.model import FlexMoe, encoder_key


@dataclass(frozen=True)
class DeclaredFacts:
    """The site's rounded size, its modalities, and whether some of its patients have every modality of the study."""

    patients: int
    modalities: tuple[str, ...]
    full_modality: bool

    def teaches(self, plan: RoundPlan) -> bool:
        """Whether the site's complete patients, or all, teach experts and router in such a round."""
        return plan.stage is Stage.SPECIALIZE or self.full_modality

    def frozen(self, model: FlexMoe, plan: RoundPlan) -> frozenset[str]:
        """Parameters that the site does not train: encoders of what it lacks, and experts that it may not teach."""
        lacking = {encoder_key(name) for name in model.modalities if name not in self.modalities}
        groups = () if self.teaches(plan) else (Group.EXPERTS, Group.ROUTER)
        return frozenset(
            name
            for name, _ in model.named_parameters()
            if group_of(name) in groups or (group_of(name) is Group.ENCODERS and name.split(".")[1] in lacking)
        )

    def support(self, model: FlexMoe, table: CombinationTable, plan: RoundPlan) -> Support:
        """The weight of each part of the site's update, in declared patients."""
        size = float(self.patients)
        observed_M = np.array([name in self.modalities for name in model.modalities])
        teaching = size if self.teaches(plan) else 0.0
        routers, experts = model.routers_per_layer, model.settings.routed_experts
        return Support(
            patients=size,
            incomplete=size,
            specialized=teaching if plan.stage is Stage.SPECIALIZE else 0.0,
            modality_M=np.where(observed_M, size, 0.0),
            lacking_M=np.full(len(observed_M), size),
            slots_S=np.where(_usable_slots(model, table, observed_M), size, 0.0),
            routed_LRE=np.full((len(model.sparse_layers), routers, experts), teaching),
            offered_LE=np.zeros((len(model.sparse_layers), experts)),
        )


def _usable_slots(model: FlexMoe, table: CombinationTable, observed_M: np.ndarray) -> np.ndarray:
    """Which residual rows of the bank patients of a site with these modalities can use (bool, (S,))."""
    if isinstance(model.bank, CompositionalBank):
        return np.repeat(observed_M, len(observed_M))
    possible = _mask(observed_M)
    usable = np.array([mask & ~possible == 0 for mask, _ in table.slots], dtype=bool)
    return usable[: model.bank.slots]


def _mask(observed_M: Collection[bool]) -> int:
    return sum(1 << m for m, observed in enumerate(observed_M) if observed)
