from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmoe_core.errors import InputError
from flexmoe_core.modalities.volume import VolumeModality, VolumePreprocessing
from flexmoe_core.study import Study, load_study

STUDY = """
[study]
name = "brains"
[label]
name = "diagnosis"
classes = ["control", "dementia"]
[[modality]]
name = "mri"
kind = "volume"
encoder = "shared"
shape = [91, 109, 91]
range = [0, 1023]
spacing = [2, 2, 2.5]
"""


def load(text: str, folder: Path) -> Study:
    (folder / "study.toml").write_text(text, encoding="utf-8")
    return load_study(folder / "study.toml")


def test_a_volume_is_declared_by_shape_and_range(tmp_path: Path) -> None:
    study = load(STUDY, tmp_path)
    mri = VolumeModality(name="mri", encoder="shared", voxels=(91, 109, 91), range=(0, 1023), spacing=(2, 2, 2.5))
    assert study.modality("mri") == mri
    assert (mri.shape, mri.contents) == ((91, 109, 91), "91 x 109 x 91 voxels, 2 x 2 x 2.5 mm")
    assert mri.preprocessing == VolumePreprocessing(voxels=(91, 109, 91), range=(0, 1023))
    assert load(study.to_toml(), tmp_path) == study
    assert Study.from_json(study.to_json()) == study


@pytest.mark.parametrize("lines", ["shape = [91, 109, 91]\nrange = [0, 1023]\nspacing = [2, 2, 2.5]\n", ""])
def test_studies_without_spacing_or_with_local_encoders_survive_the_round_trip(tmp_path: Path, lines: str) -> None:
    text = STUDY.replace("spacing = [2, 2, 2.5]\n", "")
    if not lines:
        text = text.replace("shape = [91, 109, 91]\nrange = [0, 1023]\n", "").replace("shared", "local")
    study = load(text, tmp_path)
    assert load(study.to_toml(), tmp_path) == study
    assert Study.from_json(study.to_json()) == study


@pytest.mark.parametrize(
    ("old", "new", "place", "what"),
    [
        ("shape = [91, 109, 91]", "", "shape", "is missing"),
        ("range = [0, 1023]", "", "range", "is missing"),
        ("[0, 1023]", "[5, 5]", "range", "is empty"),
        ('"shared"', '"local"', "shape", "not allowed with a local"),
        ('"shared"', '"local"', "range", "not allowed with a local"),
        ('"shared"', '"local"', "spacing", "not allowed with a local"),
        ("[91, 109, 91]", "[91, 109]", "shape.#3", "is missing"),
        ("[91, 109, 91]", "[91, 7, 91]", "shape.#2", "greater than or equal to 8"),
        ("[91, 109, 91]", "[91, 2000, 91]", "shape.#2", "less than or equal to 1024"),
        ("[91, 109, 91]", "[1024, 1024, 1024]", "shape", "has more than"),
        ("[91, 109, 91]", "[91, true, 91]", "shape.#2", "valid integer"),
        ("[2, 2, 2.5]", "[2, 0, 2.5]", "spacing.#2", "greater than 0"),
        ("[2, 2, 2.5]", "[2, nan, 2.5]", "spacing.#2", "should be"),
        ("spacing", "spacings", "spacings", "is not a known key"),
    ],
)
def test_broken_declarations(tmp_path: Path, old: str, new: str, place: str, what: str) -> None:
    assert old in STUDY
    with pytest.raises(InputError) as caught:
        load(STUDY.replace(old, new, 1), tmp_path)
    found = [problem for problem in caught.value.problems if problem.place == f"modality.mri.{place}"]
    assert any(what in problem.what for problem in found), caught.value.problems


def test_the_limits_of_the_range_become_minus_2_and_2_and_outliers_are_clipped() -> None:
    preprocessing = VolumePreprocessing(voxels=(8, 8, 8), range=(0, 8))
    x = preprocessing.encode(torch.tensor([0.0, 8.0, 12.0, 13.0, -50.0]))
    assert x.dtype == torch.float32
    assert x.tolist() == [-2, 2, 4, 4, -4]


def test_the_inputs_of_a_local_encoder_are_known_at_its_site_only() -> None:
    with pytest.raises(ValueError, match="at its site only"):
        _ = VolumeModality(name="mri", encoder="local").preprocessing


@given(st.integers(1, 6), st.floats(-1e4, 1e4), st.floats(1e-2, 1e4), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_a_fitted_scale_standardizes_training_volumes(patients: int, mean: float, spread: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    volumes_RDHW = torch.rand(patients + 1, 8, 8, 8, generator=generator) * spread + mean
    volumes_RDHW[-1] = 1e6  # no training patient
    fitted = VolumePreprocessing.fitted((8, 8, 8), volumes_RDHW, range(patients))
    x_RDHW = fitted.encode(volumes_RDHW[:-1]).double()
    assert abs(x_RDHW.mean()) < 1e-4
    assert abs(x_RDHW.std(correction=0) - 1) < 1e-4
    assert VolumePreprocessing.model_validate_json(fitted.model_dump_json()) == fitted


@pytest.mark.parametrize("patients", [0, 3])
def test_even_and_absent_volumes_keep_a_finite_scale(patients: int) -> None:
    volumes_RDHW = torch.full((3, 8, 8, 8), 5.0)
    fitted = VolumePreprocessing.fitted((8, 8, 8), volumes_RDHW, range(patients))
    assert fitted.encode(volumes_RDHW).unique().tolist() == ([0] if patients else [4])
