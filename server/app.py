"""The Flower ServerApp of the coordinator: opens the run folder and runs the federation."""

from __future__ import annotations

from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.federation import Federation, RoundObserver
from server.run_store import RunStore


def build_app(observe: RoundObserver | None = None, durable: bool = True) -> ServerApp:
    """A ServerApp that tells every round to ``observe``; without one, the run folder alone keeps what happens.

    ``durable`` is explained in ``RunStore``.

    Run configuration: ``run-folder`` (made by ``RunStore.create``), ``resume``, and ``expected-sites`` to wait for
    (0: as many as the quorum).
    """
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        torch.set_num_threads(1)
        store = RunStore.open(Path(str(context.run_config["run-folder"])), durable)
        resume, expected = bool(context.run_config["resume"]), int(context.run_config["expected-sites"])
        Federation(grid, store, resume, expected, observe or store.append_event).run()

    return server_app


app = build_app()
