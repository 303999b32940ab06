"""A small generated federation and settings that train it in a second."""

from __future__ import annotations

from pathlib import Path

from server.settings import RunSettings, settings_with
from simulations.datasets.synthetic import prepare_synthetic

SITES = ("site-1", "site-2", "site-3")


def tiny_study(folder: Path) -> Path:
    """Three sites, three modalities, sixty patients each."""
    prepare_synthetic(folder, sites=3, modalities=3, patients_per_site=60, classes=2, missing=0.3, seed=3)
    return folder


def tiny_settings(*changes: str) -> RunSettings:
    """Four rounds, the first of which generalizes."""
    return settings_with(
        [
            "federation.rounds=4",
            "method.training.learning_rate=0.02",
            "method.training.epochs=2",
            "method.curriculum.generalize_rounds=1",
            "method.model.width=16",
            "method.model.expert_width=16",
            "method.model.experts=4",
            *changes,
        ]
    )


def checkpoint_bytes(run_folder: Path) -> dict[str, bytes]:
    """The content of ``checkpoint/``, which equal runs share bit for bit."""
    return {file.name: file.read_bytes() for file in sorted((run_folder / "checkpoint").iterdir())}
