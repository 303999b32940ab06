"""The whole way on real data: what the default settings reached when they were chosen, within rounding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.settings import settings_with
from simulations.datasets.uci_heart import prepare_uci_heart
from simulations.runs import simulate

GOLDEN = json.loads(Path(__file__).with_name("uci_heart.json").read_text())


@pytest.mark.slow
def test_four_real_hospitals_reach_the_golden_metrics(tmp_path: Path) -> None:
    prepare_uci_heart(tmp_path / "hospitals", GOLDEN["protocol"], GOLDEN["seed"])
    store = simulate(tmp_path / "hospitals", tmp_path / "run", settings_with([], seed=GOLDEN["seed"]))
    pooled = store.metrics()["test"]["pooled"]
    for metric, golden in GOLDEN["test"]["pooled"].items():
        assert pooled[metric] == pytest.approx(golden, abs=GOLDEN["tolerance"][metric]), metric
