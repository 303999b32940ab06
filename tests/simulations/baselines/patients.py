"""Hospitals of a generated study, read from the folders that were prepared for them."""

from pathlib import Path

from client.site_data import SiteData
from flexmoe_core.study import Study, load_study
from simulations.baselines.predictions import read_sites
from simulations.datasets.synthetic import prepare_synthetic
from simulations.runs import site_folders


def prepared(
    folder: Path, patients_per_site: int = 60, classes: int = 2
) -> tuple[Study, dict[str, Path], dict[str, SiteData]]:
    """Study, site folders and patients of two hospitals."""
    prepare_synthetic(
        folder, sites=2, modalities=2, patients_per_site=patients_per_site, classes=classes, missing=0.3, seed=1
    )
    study, folders = load_study(folder / "study.toml"), site_folders(folder)
    return study, folders, read_sites(folders, study)
