from pathlib import Path

import pytest
import torch

from client import cache
from client.cache import load_site
from client.site_data import SiteData
from flexmoe_core.errors import InputError
from tests.client.conftest import SiteFolder

ALL = ("train", "validation", "test")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "state" / "cache"


def same(one: SiteData, other: SiteData) -> bool:
    pairs = [(one.cohorts[split], other.cohorts[split]) for split in one.cohorts]
    return (
        (one.name, one.public, one.modalities, one.preprocessing, one.ids)
        == (other.name, other.public, other.modalities, other.preprocessing, other.ids)
        and list(one.cohorts) == list(other.cohorts)
        and all(
            torch.equal(a.labels_B, b.labels_B)
            and torch.equal(a.observed_BM, b.observed_BM)
            and a.inputs.keys() == b.inputs.keys()
            and all(torch.equal(a.inputs[name], b.inputs[name]) for name in a.inputs)
            for a, b in pairs
        )
    )


def forbid_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> SiteData:
        raise AssertionError("parsed again")

    monkeypatch.setattr(cache, "read_site", refuse)


@pytest.mark.parametrize("splits", [ALL, ("validation", "train"), ("test",)])
def test_the_cache_answers_what_parsing_would(
    site: SiteFolder, kept: Path, monkeypatch: pytest.MonkeyPatch, splits: tuple[str, ...]
) -> None:
    study, fresh = site.study(), site.read(splits)
    assert same(load_site(site.path, study, splits, None), fresh)
    assert same(load_site(site.path, study, splits, kept), fresh)
    forbid_parsing(monkeypatch)
    assert same(load_site(site.path, study, splits, kept), fresh)


def test_test_patients_are_cached_only_when_asked_for(site: SiteFolder, kept: Path) -> None:
    site.edit("patients.csv", "p4,present", "p4,garbage")
    load_site(site.path, site.study(), ("train", "validation"), kept)
    assert sorted(path.stem for path in kept.glob("*.json")) == ["heart-train", "heart-validation"]
    with pytest.raises(InputError, match="outside the classes"):
        load_site(site.path, site.study(), ALL, kept)


def test_a_split_is_added_to_those_that_are_cached(site: SiteFolder, kept: Path) -> None:
    load_site(site.path, site.study(), ("train",), kept)
    assert same(load_site(site.path, site.study(), ALL, kept), site.read())


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("labs.csv", "350", "400"),
        ("patients.csv", "p1,absent", "p1,present"),
        ("site.toml", 'missing = ["", "?"]', 'missing = ["", "?", 350]'),
        ("study.toml", "range = [100, 600]", "range = [100, 700]"),
    ],
)
def test_a_change_is_read(site: SiteFolder, kept: Path, name: str, old: str, new: str) -> None:
    before = load_site(site.path, site.study(), ("train",), kept)
    site.edit(name, old, new)
    after = load_site(site.path, site.study(), ("train",), kept)
    assert same(after, site.read(("train",)))
    assert not same(after, before)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"{}", None])
def test_a_corrupt_cache_is_rebuilt(
    site: SiteFolder, kept: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, content: bytes | None
) -> None:
    fresh = load_site(site.path, site.study(), ALL, kept)
    path = kept / f"heart-train{suffix}"
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(bytes(data) if content is None else content)
    assert same(load_site(site.path, site.study(), ALL, kept), fresh)
    forbid_parsing(monkeypatch)
    assert same(load_site(site.path, site.study(), ALL, kept), fresh)


def test_an_empty_split_is_cached(site: SiteFolder, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.edit("patients.csv", "validation", "train")
    fresh = load_site(site.path, site.study(), ("validation",), kept)
    forbid_parsing(monkeypatch)
    assert same(load_site(site.path, site.study(), ("validation",), kept), fresh)


def test_a_broken_site_reports_all_its_problems_and_caches_nothing(site: SiteFolder, kept: Path) -> None:
    (site / "labs.csv").unlink()
    site.edit("history.csv", "60,M", "x,M")
    with pytest.raises(InputError) as caught:
        load_site(site.path, site.study(), ("train",), kept)
    assert len(caught.value.problems) == 2
    assert not kept.exists()


def test_a_cache_folder_that_cannot_be_written_is_named(site: SiteFolder, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(InputError, match="state/cache: cannot be written"):
        load_site(site.path, site.study(), ("train",), tmp_path / "state" / "cache")


def test_cached_patients_are_private(site: SiteFolder, kept: Path) -> None:
    load_site(site.path, site.study(), ALL, kept)
    assert {path.stat().st_mode & 0o077 for path in (kept, *kept.iterdir())} == {0}
