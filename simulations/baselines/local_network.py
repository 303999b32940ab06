"""The federation's network trained at one hospital alone: a federation of one, by the same code."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from client.manifest import read_manifest
from client.site_data import read_site
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.study import load_study
from server.robust import AggregationSettings
from server.settings import EarlyStopSettings, RunSettings
from simulations.baselines.predictions import ALL_SPLITS, SitePredictions, bundle_predictions
from simulations.runs import simulate, site_bundle

LENGTHS = (1.0, 0.5, 0.25, 0.125)


@dataclass(frozen=True)
class NetworkJob:
    """One training: at which hospital, whose split changes to what, how, and who is then predicted.

    These ``patients`` must be in the split ``test``: a site learns from all others, at the end from validation too.
    """

    site: Path
    split_of: Mapping[str, str]
    settings: RunSettings
    patients: tuple[str, ...]


def candidates(settings: RunSettings) -> list[RunSettings]:
    """The federation's settings for as many rounds and for fewer: a few patients are soon learned by heart."""
    return [_alone(settings, length) for length in LENGTHS]


def train_alone(job: NetworkJob) -> SitePredictions:
    """Train the network and predict. Raises RunFailed where training diverges, InputError for bad folders."""
    with tempfile.TemporaryDirectory() as scratch:
        study_folder = Path(scratch) / "study"
        site = study_folder / job.site.name
        copy_with_splits(job.site, site, job.split_of)
        shutil.copyfile(job.site.parent / "study.toml", study_folder / "study.toml")
        store = simulate(study_folder, Path(scratch) / "run", job.settings)
        data = read_site(site, load_study(study_folder / "study.toml"), ALL_SPLITS)
        return bundle_predictions(site_bundle(store, site.name), data).only(job.patients)


def copy_with_splits(site: Path, copy: Path, split_of: Mapping[str, str]) -> None:
    """Copy a site folder, with other splits for the patients that ``split_of`` names.

    Raises InputError where its patients file is not a CSV, which all prepared folders have.
    """
    section = read_manifest(site).site
    if not section.patients.endswith(".csv"):
        remedy = "Export it as CSV: baselines are trained on copies with other splits."
        raise InputError([Problem(str(site / section.patients), "", "is not a CSV file", remedy)])
    shutil.copytree(site, copy)
    patients = pd.read_csv(site / section.patients, dtype=str, keep_default_na=False)
    ids = patients[section.id].str.strip()
    patients[section.split] = ids.map(split_of).fillna(patients[section.split])
    patients.to_csv(copy / section.patients, index=False)


def _alone(settings: RunSettings, length: float) -> RunSettings:
    """The settings of a federation of one, its stages shortened by a factor."""
    stages, federation = settings.method.curriculum, settings.federation
    curriculum = stages.model_copy(update={"generalize_rounds": round(stages.generalize_rounds * length)})
    changes = {
        "rounds": max(1, round(federation.rounds * length)),
        "quorum": 1,
        "aggregation": AggregationSettings(),
        "early_stop": EarlyStopSettings(),
    }
    return settings.model_copy(
        update={
            "method": settings.method.model_copy(update={"curriculum": curriculum}),
            "federation": federation.model_copy(update=changes),
        }
    )
