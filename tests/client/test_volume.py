import gzip
import math
import re
import struct
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, DTypeLike

from client import volume_files
from client.bundle import read_bundle
from client.cache import load_site
from client.check import check_site
from client.volume_files import VolumeForm, read_volume
from flexmoe_core.modalities.volume import VolumePreprocessing
from flexmoe_core.validation import Findings
from tests.client.conftest import SiteFolder
from tests.client.coordinator import coordinate, make_cpu_site

nibabel = import_module("nibabel")  # its own types are incomplete

SECRET = 87310.0
SHAPE = (8, 9, 10)
SHARED = """
[[modality]]
name = "image"
kind = "volume"
encoder = "shared"
shape = [8, 9, 10]
range = [0, 8]
spacing = [2, 2, 3]
"""
LOCAL = '[[modality]]\nname = "image"\nkind = "volume"\nencoder = "local"\n'
ENTRY = '[[modality]]\nname = "image"\nfile = "images.csv"\n'
INDEX = "patient,path\np1,images/1.npy\np2,images/2.nii\np3,\np4,images/4.nii.gz\n"
FORM = VolumeForm(SHAPE, None, None)


def volume(seed: int) -> np.ndarray:
    """Intensities from 0 to 8."""
    return np.random.default_rng(seed).uniform(0, 8, SHAPE).astype(np.float32)


def nifti(path: Path, array: np.ndarray, spacing: float = 2.0, unit: str = "mm", ratio: float = 1.5) -> None:
    image = nibabel.Nifti1Image(array, np.diag([spacing, spacing, ratio * spacing, 1]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)


def add_images(site: SiteFolder, declaration: str = SHARED, keys: str = "") -> SiteFolder:
    """The good folder with a fourth modality: p1, p2 and p4 have a volume."""
    site.write("study.toml", (site / "study.toml").read_text() + declaration)
    site.write("site.toml", (site / "site.toml").read_text() + ENTRY + keys)
    site.write("images.csv", INDEX)
    (site / "images").mkdir()
    np.save(site / "images/1.npy", volume(1))
    nifti(site / "images/2.nii", volume(2))
    nifti(site / "images/4.nii.gz", volume(4))
    return site


@pytest.fixture
def shared(site: SiteFolder) -> SiteFolder:
    return add_images(site)


def on_scale(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((array.astype(np.float64) - 4) / 2).float()


def test_volumes_are_read_by_id_on_the_scale_of_the_study(shared: SiteFolder) -> None:
    data = shared.read()
    assert data.shapes["image"] == SHAPE
    assert data.preprocessing["image"] == VolumePreprocessing(voxels=SHAPE, range=(0, 8))
    train, validation, test = data.cohorts.values()
    assert train.inputs["image"].dtype == torch.float32
    assert torch.equal(
        train.inputs["image"], torch.stack([on_scale(volume(1)), on_scale(volume(2)), torch.zeros(SHAPE)])
    )
    assert train.observed_BM[:, 3].tolist() == [True, True, False]
    assert not validation.inputs["image"].any()
    assert torch.equal(test.inputs["image"], torch.stack([on_scale(volume(4)), torch.zeros(SHAPE)]))
    assert not (validation.observed_BM[:, 3].any() or test.observed_BM[1, 3])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, ">i2", np.uint64, np.float16, np.float64, np.longdouble])
def test_any_real_numbers_will_do(tmp_path: Path, dtype: DTypeLike) -> None:
    whole = volume(1).round()
    np.save(tmp_path / "a.npy", np.asfortranarray(whole.astype(dtype)))
    found = read_volume(tmp_path / "a.npy", FORM)
    assert torch.equal(found, torch.from_numpy(whole))
    assert found.is_contiguous()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII"])
@pytest.mark.parametrize("form", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nifti_is_scaled_by_its_header_and_read_along_its_stored_axes(
    tmp_path: Path, suffix: str, form: Callable[..., Any]
) -> None:
    stored, turned = volume(1).round().astype(np.int16), np.diag([-1.0, -1, 1, 1])[[1, 2, 0, 3]]
    image = form(stored[..., None], turned)  # a fourth axis of length 1 says nothing
    image.header.set_slope_inter(0.5, -1)
    nibabel.save(image, tmp_path / f"a{suffix.lower()}")
    (tmp_path / f"a{suffix.lower()}").rename(tmp_path / f"a{suffix}")
    expected = np.asarray(nibabel.load(tmp_path / f"a{suffix}").dataobj)[..., 0]
    found = read_volume(tmp_path / f"a{suffix}", FORM)
    assert torch.equal(found, torch.from_numpy(expected.astype(np.float32)))


@pytest.mark.parametrize(
    ("spacing", "unit"), [(2.0, "mm"), (2.01, "mm"), (2.0, "unknown"), (0.002, "meter"), (2000, "micron")]
)
def test_the_spacing_of_a_header_is_compared_in_millimeters(tmp_path: Path, spacing: float, unit: str) -> None:
    nifti(tmp_path / "a.nii", volume(1), spacing, unit)
    read_volume(tmp_path / "a.nii", VolumeForm(SHAPE, (2, 2, 3), None))
    for wrong in ((2.05, 2, 3), (2, 1.9, 3), (3, 2, 2)):
        with pytest.raises(Findings, match="another voxel spacing"):
            read_volume(tmp_path / "a.nii", VolumeForm(SHAPE, wrong, None))


def test_a_local_encoder_has_shape_and_scale_of_the_site(site: SiteFolder) -> None:
    add_images(site, LOCAL, "shape = [8, 9, 10]\nspacing = [2, 2, 3]\n")
    data = site.read(("train",))
    train = torch.stack([torch.from_numpy(volume(seed)) for seed in (1, 2)]).double()
    mean, deviation = train.mean(), train.std(correction=0)
    assert torch.allclose(data.cohorts["train"].inputs["image"][:2], ((train - mean) / deviation).float(), atol=1e-6)
    test = site.read(("test",))
    assert test.preprocessing == data.preprocessing
    expected = ((torch.from_numpy(volume(4)).double() - mean) / deviation).float()
    assert torch.allclose(test.cohorts["test"].inputs["image"][0], expected, atol=1e-6)


def test_outliers_are_clipped(shared: SiteFolder) -> None:
    array = volume(1)
    array[0, 0, :2] = 1e6, -1e6
    np.save(shared / "images/1.npy", array)
    assert shared.read(("train",)).cohorts["train"].inputs["image"][0, 0, 0, :2].tolist() == [4, -4]


def test_the_index_may_be_parquet_or_the_patients_file_and_its_column_have_any_name(shared: SiteFolder) -> None:
    good = shared.read(("train",)).cohorts["train"]
    paths = {"p1": "images/1.npy", "p2": "images/2.nii", "p4": "images/4.nii.gz"}
    pd.Series(paths, name="image file").rename_axis("patient").reset_index().to_parquet(shared / "images.parquet")
    shared.edit("site.toml", '"images.csv"', '"images.parquet"\npath_column = "image file"')
    assert torch.equal(shared.read(("train",)).cohorts["train"].inputs["image"], good.inputs["image"])
    table = pd.read_csv(shared / "patients.csv")
    table.assign(**{"image file": table["patient"].map(paths)}).to_csv(shared / "patients.csv", index=False)
    shared.edit("site.toml", "images.parquet", "patients.csv")
    assert torch.equal(shared.read(("train",)).cohorts["train"].inputs["image"], good.inputs["image"])


def test_the_documented_example_is_good(site: SiteFolder) -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    section = text.split("### Volumes\n", 1)[1].split("\n##", 1)[0]
    study, entry, table = re.findall(r"```(?:toml|csv)\n(.*?)```", section, re.DOTALL)
    site.write("study.toml", (site / "study.toml").read_text() + study)
    site.write("site.toml", (site / "site.toml").read_text() + entry)
    site.write("mri.csv", table)
    (site / "mri").mkdir()
    nifti(site / "mri/p1.nii.gz", np.ones((91, 109, 91), np.uint8), 2.0, ratio=1.0)
    np.save(site / "mri/p2.npy", np.ones((91, 109, 91), np.uint8))
    assert site.problems() == ()


def saved(array: ArrayLike) -> Callable[[SiteFolder], None]:
    return lambda site: np.save(site / "images/1.npy", array, allow_pickle=True)


def with_voxel(value: float) -> Callable[[SiteFolder], None]:
    array = volume(1)
    array[3, 4, 5] = value
    return saved(array)


def named(path: str) -> Callable[[SiteFolder], None]:
    return lambda site: site.edit("images.csv", "images/1.npy", path)


def cut(name: str, keep: int) -> Callable[[SiteFolder], None]:
    def break_it(site: SiteFolder) -> None:
        (site / name).write_bytes((site / name).read_bytes()[:keep])

    return break_it


def index(text: str) -> Callable[[SiteFolder], None]:
    return lambda site: site.write("images.csv", text)


def as_nifti(array: np.ndarray, spacing: float = 2.0) -> Callable[[SiteFolder], None]:
    return lambda site: nifti(site / "images/2.nii", array, spacing)


def leads_out(site: SiteFolder) -> None:
    np.save(site.path.parent / "out.npy", volume(1))
    (site / "images/1.npy").unlink()
    (site / "images/1.npy").symlink_to(site.path.parent / "out.npy")


def colored(site: SiteFolder) -> None:
    nibabel.save(
        nibabel.Nifti1Image(np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]), np.diag([2, 2, 3, 1])),
        site / "images/2.nii",
    )


def column_is(name: str) -> Callable[[SiteFolder], None]:
    return lambda site: site.edit("site.toml", '"images.csv"', f'"images.csv"\npath_column = "{name}"')


P1, P2, P4 = (f"column path, line {line}" for line in (2, 3, 5))
BROKEN: dict[str, tuple[Callable[[SiteFolder], None], str, str, str]] = {
    "absent": (named("images/9.npy"), "images.csv", P1, "names no file"),
    "outside": (named("../out.npy"), "images.csv", P1, "outside the site folder"),
    "absolute": (named("/etc/passwd"), "images.csv", P1, "outside the site folder"),
    "linked out": (leads_out, "images.csv", P1, "outside the site folder"),
    "no path": (named("x" * 5000), "images.csv", P1, "is not a path"),
    "folder": (named("images"), "images.csv", P1, "names no file"),
    "other format": (named("patients.csv"), "images.csv", P1, "neither .npy nor .nii nor .nii.gz"),
    "same file": (index("patient,path\np1,images/1.npy\np2,./images/1.npy\n"), "images.csv", P2, "earlier patient"),
    "shape": (saved(volume(1)[:, :, 1:]), "images.csv", P1, "of 8 x 9 x 9, not of 8 x 9 x 10 voxels"),
    "turned": (saved(volume(1).T), "images.csv", P1, "of 10 x 9 x 8, not of"),
    "flat": (saved(volume(1)[0]), "images.csv", P1, "of 9 x 10, not of"),
    "scalar": (saved(np.float32(1)), "images.csv", P1, "of a single number"),
    "channels": (saved(volume(1)[..., None]), "images.csv", P1, "of 8 x 9 x 10 x 1, not of"),
    "complex": (saved(volume(1).astype(complex)), "images.csv", P1, "not real numbers"),
    "text": (saved(np.full(SHAPE, "1")), "images.csv", P1, "not real numbers"),
    "structured": (saved(np.zeros(SHAPE, [("a", "f4")])), "images.csv", P1, "not real numbers"),
    "objects": (saved(np.full(SHAPE, None)), "images.csv", P1, "Python objects"),
    "NaN": (with_voxel(math.nan), "images.csv", P1, "NaN or infinite"),
    "infinite": (with_voxel(-math.inf), "images.csv", P1, "NaN or infinite"),
    "too large": (with_voxel(-1e13), "images.csv", P1, "too large"),
    "other unit": (saved(volume(1) + SECRET), "images.csv", P1, "without any voxel in the range 0 to 8"),
    "truncated": (cut("images/1.npy", 500), "images.csv", P1, "cannot be read"),
    "empty": (cut("images/1.npy", 0), "images.csv", P1, "cannot be read"),
    "truncated NIfTI": (cut("images/2.nii", 500), "images.csv", P2, "cannot be read"),
    "truncated header": (cut("images/2.nii", 100), "images.csv", P2, "cannot be read"),
    "empty NIfTI": (cut("images/2.nii", 0), "images.csv", P2, "cannot be read"),
    "truncated gzip": (cut("images/4.nii.gz", 500), "images.csv", P4, "cannot be read"),
    "NIfTI's shape": (as_nifti(volume(1)[1:]), "images.csv", P2, "of 7 x 9 x 10, not of"),
    "NIfTI's time": (as_nifti(np.stack([volume(1)] * 2, -1)), "images.csv", P2, "of 8 x 9 x 10 x 2, not of"),
    "NIfTI's spacing": (as_nifti(volume(1), 2.05), "images.csv", P2, "another voxel spacing than 2 x 2 x 3 mm"),
    "NIfTI's NaN": (as_nifti(volume(1) * np.float32(math.nan)), "images.csv", P2, "NaN or infinite"),
    "complex NIfTI": (as_nifti(volume(1).astype(np.complex64)), "images.csv", P2, "not real numbers"),
    "colored NIfTI": (colored, "images.csv", P2, "not real numbers"),
    "stranger": (index(INDEX.replace("p2", "p9")), "images.csv", "column patient, line 3", "is no patient"),
    "twice": (index(INDEX.replace("p2", "p1")), "images.csv", "column patient, line 3", "repeats"),
    "no id": (index(INDEX.replace("p2", "")), "images.csv", "column patient, line 3", "no patient id"),
    "no rows": (index("patient,path\n"), "images.csv", "", "has no rows"),
    "no paths": (index("patient,path\np1,\n"), "images.csv", "", "has no path in any row"),
    "no path column": (index("patient,pth\np1,images/1.npy\n"), "images.csv", "", "has no column 'path'"),
    "no id column": (index("id,path\np1,images/1.npy\n"), "images.csv", "", "has no column 'patient'"),
    "ids as paths": (column_is("patient"), "site.toml", "modality.image", "holds the id"),
    "index absent": (
        lambda site: (site / "images.csv").unlink(),
        "site.toml",
        "modality.image.file",
        "names no file",
    ),
    "shape twice": (
        lambda site: site.write("site.toml", (site / "site.toml").read_text() + "shape = [8, 9, 10]\n"),
        "site.toml",
        "modality.image.shape",
        "not allowed with a shared",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.filterwarnings("ignore")
def test_a_fault_is_one_problem_with_its_line_and_remedy(shared: SiteFolder, name: str) -> None:
    break_it, file, place, what = BROKEN[name]
    break_it(shared)
    (problem,) = shared.problems()
    assert (problem.file, problem.place) == (str(shared / file), place)
    assert what in problem.what
    assert problem.remedy
    assert not any(secret in str(problem) for secret in (str(SECRET), "nan", "x" * 99, "1.npy"))


def test_all_problems_come_at_once(shared: SiteFolder) -> None:
    with_voxel(math.nan)(shared)
    as_nifti(volume(2)[1:].astype(np.complex64))(shared)
    cut("images/4.nii.gz", 300)(shared)
    shared.edit("labs.csv", "350", "x")
    assert [(Path(one.file).name, one.place) for one in shared.problems()] == [
        ("labs.csv", "column serum_chol, line 2"),
        ("images.csv", P1),
        ("images.csv", P2),
        ("images.csv", P2),
        ("images.csv", P4),
    ]


def test_a_local_shape_is_the_sites_to_declare(site: SiteFolder) -> None:
    add_images(site, LOCAL)
    (problem,) = site.problems()
    assert (problem.place, problem.what) == ("modality.image.shape", "is missing")
    site.write("site.toml", (site / "site.toml").read_text() + "shape = [8, 9, 4]\n")
    (problem,) = site.problems()
    assert problem.place == "modality.image.shape.#3"


def test_volumes_of_other_splits_are_not_opened(shared: SiteFolder) -> None:
    cut("images/4.nii.gz", 300)(shared)  # p4 is a test patient
    assert shared.problems(("train", "validation")) == ()
    assert [problem.place for problem in shared.problems(("test",))] == [P4]


def test_an_unreadable_patients_file_hides_no_problem_of_volumes(shared: SiteFolder) -> None:
    shared.write("patients.csv", "patient\np1\n")
    cut("images/4.nii.gz", 300)(shared)
    assert any(problem.place == P4 for problem in shared.problems())


def test_without_its_reader_nifti_is_a_problem_and_npy_is_not(
    shared: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_files, "NIFTI_READER", "nibabel_that_is_absent")
    (problem,) = shared.problems()
    assert problem.place == "column path, lines 3, 5"
    assert "flexmoe-federated[nifti]" in problem.remedy


def test_the_cache_follows_the_bytes_of_the_volumes(shared: SiteFolder, tmp_path: Path) -> None:
    kept = tmp_path / "cache"
    first = load_site(shared.path, shared.study(), ("train",), kept)
    (file,) = kept.glob("*.safetensors")
    written = file.stat().st_mtime_ns
    again = load_site(shared.path, shared.study(), ("train",), kept)
    assert file.stat().st_mtime_ns == written
    assert again.preprocessing == first.preprocessing
    assert torch.equal(again.cohorts["train"].inputs["image"], first.cohorts["train"].inputs["image"])
    np.save(shared / "images/1.npy", volume(7))  # as long as the one before
    changed = load_site(shared.path, shared.study(), ("train",), kept)
    assert torch.equal(changed.cohorts["train"].inputs["image"][0], on_scale(volume(7)))
    (shared / "images/1.npy").unlink()
    assert [problem.what for problem in shared.problems()] == ["names no file"]


@pytest.mark.parametrize("declaration", [SHARED, LOCAL], ids=["shared", "local"])
def test_a_bundle_keeps_what_made_the_inputs(site: SiteFolder, tmp_path: Path, declaration: str) -> None:
    add_images(site, declaration, "shape = [8, 9, 10]\n" if declaration == LOCAL else "")
    one = make_cpu_site(site.path, tmp_path / "state")
    coordinator = coordinate(site.study(), one)
    one.train(coordinator.train())
    one.finish(coordinator.finish(1))
    (folder,) = tmp_path.glob("state/**/bundle")
    bundle = read_bundle(folder)
    assert bundle.facts.preprocessing == site.read().preprocessing
    assert bundle.facts.inputs[-1].shape == SHAPE


def test_check_counts_volumes(shared: SiteFolder) -> None:
    result = check_site(shared.path)
    assert result.problems == ()
    assert result.coverage["train"].modalities["image"] == 2


def nifti_bytes() -> bytes:
    return bytes(nibabel.Nifti1Image(volume(2), np.diag([2, 2, 3, 1])).to_bytes())


def refused_or_read(path: Path) -> None:
    """Nothing but Findings may come of any bytes, which the entry turns into problems."""
    try:
        read_volume(path, VolumeForm(SHAPE, (2, 2, 3), (0, 8)))
    except Findings as found:
        assert all(finding.remedy for finding in found.findings)


@given(
    st.sampled_from([".nii", ".nii.gz"]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8),
    st.integers(0, len(nifti_bytes())) | st.just(10**6),
)
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_changed_and_truncated_nifti_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, changes: list[tuple[int, int]], keep: int
) -> None:
    data = bytearray(nifti_bytes())
    for place, byte in changes:
        data[place] = byte
    path = tmp_path_factory.mktemp("fuzz") / f"a{suffix}"
    path.write_bytes(gzip.compress(data, 1)[:keep] if suffix == ".nii.gz" else data[:keep])
    refused_or_read(path)


@given(st.integers(0, 2 * math.prod(SHAPE) + 200), st.integers(0, 127), st.integers(0, 255))
@settings(max_examples=100, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_changed_and_truncated_npy_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, keep: int, place: int, byte: int
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.npy"
    np.save(path, volume(1).astype(np.float16))
    data = bytearray(path.read_bytes()[:keep])
    if place < len(data):
        data[place] = byte
    path.write_bytes(data)
    refused_or_read(path)


def test_a_header_cannot_ask_for_more_memory_than_the_study_declares(tmp_path: Path) -> None:
    data = bytearray(nifti_bytes())
    struct.pack_into("<8h", data, 40, 3, 32767, 32767, 32767, 1, 1, 1, 1)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(data))
    with pytest.raises(Findings, match="of 32767 x 32767 x 32767, not of"):
        read_volume(tmp_path / "a.nii.gz", FORM)
