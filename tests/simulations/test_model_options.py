"""Parameters that exist only with an option live where all live: update, sum, checkpoint, mean of rounds, bundle."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.bundle import read_bundle
from client.prediction import predict_cohort
from client.site_data import read_site
from flexmoe_core.checkpoint import read_checkpoint
from simulations.runs import simulate, site_bundle, site_folders
from tests.simulations.federations import checkpoint_bytes, tiny_settings, tiny_study

OPTIONS = (
    "method.model.router=modality",
    "method.model.balancing=bias",
    "method.model.bank=compositional",
    "method.model.pooling=attention",
    "method.training.bias_rate=0.125",
)
OWN = ("layers.0.mixture.router.bias", "layers.0.mixture.router.weight", "bank.residual", "pooling.query")


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_study(tmp_path_factory.mktemp("study") / "sites")


def test_with_every_option_a_run_resumes_to_the_same_bits_and_its_bundles_hold_what_it_ended_with(
    study: Path, tmp_path: Path
) -> None:
    def kill_after_round_2(row: Mapping[str, Any]) -> None:
        if row["round"] == 2:
            raise Killed

    finished = simulate(study, tmp_path / "whole", tiny_settings(*OPTIONS))
    with pytest.raises(Killed):
        simulate(study, tmp_path / "run", tiny_settings(*OPTIONS), observe=kill_after_round_2)
    resumed = simulate(study, tmp_path / "run", None)
    assert checkpoint_bytes(resumed.folder) == checkpoint_bytes(finished.folder)

    arrays, _ = read_checkpoint(finished.folder / "checkpoint" / "round-00004")
    weight = float(arrays["average/weight"])
    bundles = {name: read_bundle(site_bundle(finished, name)) for name in site_folders(study)}
    for own in OWN:
        assert arrays[f"state/{own}"].any(), own
        mean = (arrays[f"average/sum.{own}"] / weight).astype(np.float32)
        for bundle in bundles.values():
            assert np.array_equal(bundle.model.get_parameter(own).detach().numpy(), mean), own
    name, folder = next(iter(site_folders(study).items()))
    cohort = read_site(folder, finished.study, ("train", "test")).cohorts["test"]
    assert torch.from_numpy(predict_cohort(bundles[name], cohort)).isfinite().all()
