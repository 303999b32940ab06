"""What a coordinator would ask of one site, without a coordinator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from client.site import Site
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.groups import Group, shared_parameters
from flexmoe_core.messages import (
    FinishRequest,
    HandshakeReply,
    HandshakeRequest,
    Terms,
    TrainRequest,
    decode,
    encode,
)
from flexmoe_core.settings import MethodSettings
from flexmoe_core.study import Study
from server.federation import initial_model

RUN = "0123456789abcdef" * 2
METHOD = MethodSettings.model_validate(
    {
        "model": {"width": 8, "heads": 2, "experts": 2, "expert_width": 8},
        "training": {"learning_rate": 0.05, "batch_size": 2},
        "curriculum": {"generalize_rounds": 1, "min_full": 1},
    }
)
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Coordinator:
    """The requests of one run; the global state stays the initial one unless a test gives another."""

    terms: Terms
    table: CombinationTable

    def handshake(self) -> bytes:
        return encode(HandshakeRequest(terms=self.terms))

    def train(
        self,
        round_number: int = 1,
        state: Arrays | None = None,
        attempt: int = 1,
        noise: Mapping[str, float] | None = None,
    ) -> bytes:
        request = TrainRequest(
            terms=self.terms,
            table=self.table,
            round=round_number,
            attempt=attempt,
            noise_multipliers=dict(noise or {}),
        )
        return encode(request, self.state() if state is None else state)

    def finish(self, rounds: int, state: Arrays | None = None, release_noise: float | None = None) -> bytes:
        request = FinishRequest(terms=self.terms, table=self.table, round=rounds, release_noise=release_noise)
        return encode(request, self.state() if state is None else state)

    def state(self) -> Arrays:
        """The shared parameters that a run starts from."""
        model = initial_model(self.terms, self.table)
        shared = shared_parameters(model, self.terms.study.local_modalities, self.terms.local_groups)
        return {name: value.detach().numpy() for name, value in shared.items()}


def coordinate(
    study: Study, site: Site, min_cell: int = 1, local_groups: tuple[Group, ...] = (), method: MethodSettings = METHOD
) -> Coordinator:
    """The run of a federation of this site alone."""
    terms = Terms(run=RUN, seed=0, study=study, method=method, min_cell=min_cell, local_groups=local_groups, rounds=4)
    reply, _ = decode(site.handshake(encode(HandshakeRequest(terms=terms))), HandshakeReply)
    table = CombinationTable.build(len(study.modalities), method.model.experts, {reply.site: reply.announced}, 1)
    return Coordinator(terms, table)


def make_cpu_site(folder: Path, state: Path) -> Site:
    return Site(folder, state, torch.device("cpu"))
