"""What a run has spent, as its own records say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from client.ledger_start import node_ledger
from server.run_store import RunStore
from simulations.runs import site_state


@dataclass(frozen=True)
class Spending:
    """The guarantee that holds: (epsilon, delta) of the site that has spent most."""

    epsilon: float
    delta: float


def spent_by(store: RunStore, sites: Iterable[str]) -> Spending | None:
    """Of patients by the ledger of each of the sites, of whole sites by the coordinator; None without a guarantee.

    Raises LedgerError where a ledger is not whole, CheckpointError where the run's metrics cannot be read.
    """
    patient, site = store.settings.privacy.patient, store.settings.privacy.site
    if patient is not None:
        ledgers = (node_ledger(site_state(store.folder, name), None, create=False) for name in sites)
        return Spending(max(ledger.epsilon(patient.delta) for ledger in ledgers), patient.delta)
    if site is not None:
        return Spending(store.metrics()["privacy"]["site"]["spent"], site.delta)
    return None
