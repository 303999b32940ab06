"""Parameter groups: what each tensor belongs to, what of it is shared, and whose patients support it.

Design: a site's update carries, for each shared tensor or row of it, a support counted in patients.
Shapes: M modalities, S bank rows, E experts, L sparse layers, R routers of a layer.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from torch import Tensor

from flexmoe_core.model import FlexMoe, encoder_key
from flexmoe_core.update import TensorSpec


class Group(StrEnum):
    """The parts of a model that can be shared or stay at the site."""

    ENCODERS = "encoders"
    BANK = "bank"
    EXPERTS = "experts"
    ROUTER = "router"
    TRUNK = "trunk"
    HEAD = "head"


@dataclass(frozen=True)
class Support:
    """Patients behind one epoch of a site's training, float64 (see ``training.support_of_sgd`` for plain SGD).

    ``patients``, ``incomplete`` (something is missing) and ``specialized`` (routed by the S-Router) are numbers,
    ``modality_M`` counts who observed and ``lacking_M`` who lacked each modality, ``slots_S`` who used each bank row.
    Of the patients who teach the experts, in units of patients, ``routed_LRE`` are the routed tokens of each router
    and ``offered_LE`` those who could choose an expert freely (counted where a bias balances the experts).
    """

    patients: float
    incomplete: float
    specialized: float
    modality_M: np.ndarray
    lacking_M: np.ndarray
    slots_S: np.ndarray
    routed_LRE: np.ndarray
    offered_LE: np.ndarray

    @property
    def experts_LE(self) -> np.ndarray:
        """The routed tokens of all routers, in units of patients."""
        routed_LE: np.ndarray = self.routed_LRE.mean(axis=1)
        return routed_LE


def group_of(name: str) -> Group:
    """The group of a parameter, by its name."""
    if ".mixture.experts." in name:
        return Group.EXPERTS
    if ".mixture.router." in name:
        return Group.ROUTER
    first = name.split(".", 1)[0]
    return Group(first) if first in (Group.ENCODERS, Group.BANK, Group.HEAD) else Group.TRUNK


def shared_parameters(
    model: FlexMoe, local_modalities: Collection[str], local_groups: Collection[Group] = ()
) -> dict[str, Tensor]:
    """The parameters that travel, by name: all but local encoders and local groups."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not is_local(name, local_modalities, local_groups)
    }


def is_local(name: str, local_modalities: Collection[str], local_groups: Collection[Group]) -> bool:
    """Whether the parameter never leaves its site."""
    group = group_of(name)
    if group is Group.ENCODERS and name.split(".")[1] in map(encoder_key, local_modalities):
        return True
    return group in local_groups


def specs_of(shared: dict[str, Tensor]) -> tuple[TensorSpec, ...]:
    """Name, shape and number of separately supported rows of each shared tensor."""
    return tuple(
        TensorSpec(name, tuple(value.shape), len(value) if _has_rows(name) else 1) for name, value in shared.items()
    )


def support_of(name: str, support: Support, model: FlexMoe) -> np.ndarray:
    """The support of one shared tensor, one number per row of its ``TensorSpec``."""
    group = group_of(name)
    if group is Group.ENCODERS:
        own = [encoder_key(modality) for modality in model.modalities].index(name.split(".")[1])
        return support.modality_M[own : own + 1]
    if group is Group.BANK:
        return support.lacking_M if name == "bank.default" else support.slots_S
    if group in (Group.EXPERTS, Group.ROUTER):
        return _support_of_mixture(name, support, model.sparse_layers.index(int(name.split(".")[1])))
    if name == "imputed":
        return np.array([support.incomplete])
    return np.array([support.patients])


def _support_of_mixture(name: str, support: Support, layer: int) -> np.ndarray:
    match name.split(".")[-2:]:
        case ["router", "gate"]:
            return np.array([support.specialized])
        case ["router", "bias"]:
            return np.asarray(support.offered_LE[layer])
        case ["router", _]:
            return np.asarray(support.routed_LRE[layer].ravel())
        case _:
            return np.asarray(support.experts_LE[layer])


def _has_rows(name: str) -> bool:
    group = group_of(name)
    return group in (Group.BANK, Group.EXPERTS) or (group is Group.ROUTER and not name.endswith(".router.gate"))
