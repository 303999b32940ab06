"""What is written is what a hospital's own reader accepts."""

from pathlib import Path

import pytest

from client.entries import read_site_manifest, study_problems
from client.manifest import site_file
from flexmoe_core.study import load_study
from simulations.datasets.multiple_features import prepare_multiple_features
from simulations.datasets.synthetic import prepare_synthetic
from simulations.datasets.synthetic_scans import prepare_synthetic_scans
from simulations.datasets.uci_heart import prepare_uci_heart
from tests.simulations.datasets.digits import digit_tables


@pytest.mark.parametrize("dataset", ["uci-heart", "synthetic", "synthetic-scans", "multiple-features"])
def test_every_site_folder_fits_the_study(tmp_path: Path, dataset: str) -> None:
    out = tmp_path / "study"
    if dataset == "uci-heart":
        prepare_uci_heart(out, "flamby", seed=0)
    elif dataset == "multiple-features":
        prepare_multiple_features(out, sites=3, missing=0.3, seed=0, tables=digit_tables(tmp_path / "tables"))
    elif dataset == "synthetic-scans":
        prepare_synthetic_scans(out, sites=3, patients_per_site=10, side=8, missing=0.5, seed=0)
    else:
        prepare_synthetic(out, sites=3, modalities=3, patients_per_site=30, classes=3, missing=0.5, seed=0)
    study = load_study(out / "study.toml")
    folders = [path for path in out.iterdir() if path.is_dir()]
    assert len(folders) >= 3
    for folder in folders:
        declared = read_site_manifest(folder, study)
        assert declared.manifest.site.name == folder.name
        assert study_problems(declared, study, "site.toml") == []
        for file in declared.files(folder):
            assert site_file(folder, file, "modality").is_file()
