"""What the coordinator sees of each site in a round: its own update, or no more than the sum of all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from flwr.app import Message

from flexmoe_core.errors import MessageError
from flexmoe_core.messages import TrainReply, decode
from flexmoe_core.naming import under_prefix
from flexmoe_core.update import TensorSpec, Update
from server.run_store import RunStore
from server.settings import RunSettings
from simulations.runs import simulate

View = Mapping[str, Update]
"""By site: the most that the coordinator can say of this site's update. Attacks see nothing else of a round, so that
whatever hides updates is audited by the view that it leaves."""

PLAIN, SUMMED = "each site's update", "the sum alone"


class Listener:
    """Keeps every update that reaches the coordinator: ``rounds[r][site]``."""

    def __init__(self) -> None:
        self.rounds: dict[int, dict[str, Update]] = {}

    def __call__(self, site: str, reply: Message) -> None:
        """Replies that carry no update in the clear are passed over."""
        try:
            payload = reply.content.array_records["payload"]["bytes"].numpy().tobytes()
            facts, arrays = decode(payload, TrainReply)
        except (MessageError, LookupError, ValueError):
            return
        update = Update(under_prefix("weighted", arrays), under_prefix("support", arrays))
        self.rounds.setdefault(facts.round, {})[site] = update


def listen(
    study_folder: Path, run_folder: Path, settings: RunSettings
) -> tuple[RunStore, dict[int, dict[str, Update]]]:
    """Run the federation, and give what the coordinator was sent in each round, by site."""
    listener = Listener()
    store = simulate(study_folder, run_folder, settings, overhear=listener)
    return store, listener.rounds


def summed_view(updates: Mapping[str, Update], specs: Iterable[TensorSpec]) -> View:
    """What is left when updates are masked: their sum, which says the same of every site.

    Secure aggregation reveals exactly the fixed-point sum of the plain updates, so that nothing else need be run.
    """
    weighted: dict[str, np.ndarray] = {}
    support: dict[str, np.ndarray] = {}
    for spec in specs:
        sent = [update for update in updates.values() if spec.name in update.weighted]
        if sent:
            total = np.sum([update.weighted[spec.name].astype(np.float64) for update in sent], axis=0)
            weighted[spec.name] = total.astype(np.float32)
            support[spec.name] = np.sum([update.support[spec.name] for update in sent], axis=0)
    return dict.fromkeys(updates, Update(weighted, support))
