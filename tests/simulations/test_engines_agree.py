"""The same federation on both engines gives the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.runs import simulate
from tests.simulations.federations import checkpoint_bytes, tiny_settings, tiny_study


@pytest.mark.slow
def test_ray_gives_the_bits_of_the_inprocess_engine(tmp_path: Path) -> None:
    study = tiny_study(tmp_path / "sites")
    settings = tiny_settings("federation.rounds=2")
    inprocess = simulate(study, tmp_path / "inprocess", settings)
    ray = simulate(study, tmp_path / "ray", settings, engine="ray")
    assert checkpoint_bytes(ray.folder) == checkpoint_bytes(inprocess.folder)
    assert ray.metrics()["test"] == inprocess.metrics()["test"]
