"""The model at a site: the coordinator's shared parameters and the site's own."""

from __future__ import annotations

import numpy as np
import torch

from client.site_data import SiteData
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.errors import CheckpointError, MessageError
from flexmoe_core.groups import Group, is_local, shared_parameters
from flexmoe_core.messages import Terms
from flexmoe_core.model import FlexMoe, ModalityInput, build_model, load_parameters

Arrays = dict[str, np.ndarray]


def site_model(
    terms: Terms, table: CombinationTable, data: SiteData, state: Arrays, local: Arrays, device: torch.device
) -> FlexMoe:
    """The model with the coordinator's shared parameters and this site's local ones.

    Raises MessageError or CheckpointError where they are another model's.
    """
    model = untrained_model(terms, table, data)
    expected = {name: value.shape for name, value in shared_parameters(model, *_locality(terms)).items()}
    if {name: value.shape for name, value in state.items()} != expected:
        raise MessageError("the coordinator's parameters are not those of this study's model")
    own = {name: value.shape for name, value in model.named_parameters()}
    if any(value.shape != own.get(name) for name, value in local.items()):
        raise CheckpointError(
            "the local parameters kept here are of another model: have columns of site.toml changed?"
        )
    load_parameters(model, {name: torch.from_numpy(value) for name, value in (state | local).items()})
    return model.to(device)


def untrained_model(terms: Terms, table: CombinationTable, data: SiteData) -> FlexMoe:
    """The model that a run starts from, with the encoders that this site has."""
    return build_model(
        terms.study.modality_names,
        site_inputs(terms, data),
        len(terms.study.label.classes),
        table,
        terms.method.model,
        terms.seed,
    )


def site_inputs(terms: Terms, data: SiteData) -> tuple[ModalityInput, ...]:
    """What this site's model encodes: every shared modality, and the local ones that it has."""
    shapes = {one.name: one.shape for one in terms.study.modalities if one.encoder == "shared"} | data.shapes
    return tuple(
        ModalityInput(modality.name, modality.kind, shapes[modality.name])
        for modality in terms.study.modalities
        if modality.name in shapes
    )


def shared_values(model: FlexMoe, terms: Terms) -> Arrays:
    """The parameters that travel."""
    shared = shared_parameters(model, *_locality(terms))
    return {name: value.detach().cpu().numpy() for name, value in shared.items()}


def local_values(model: FlexMoe, terms: Terms) -> Arrays:
    """The parameters that stay."""
    return {
        name: value.detach().cpu().numpy()
        for name, value in model.named_parameters()
        if is_local(name, *_locality(terms))
    }


def _locality(terms: Terms) -> tuple[tuple[str, ...], tuple[Group, ...]]:
    """Which modalities' encoders and which groups stay at the sites."""
    return terms.study.local_modalities, terms.local_groups
