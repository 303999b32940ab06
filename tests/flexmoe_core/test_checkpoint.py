import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from flexmoe_core.checkpoint import keep_last, latest_checkpoint, read_checkpoint, write_atomic, write_checkpoint
from flexmoe_core.errors import CheckpointError

ARRAYS = {"bank": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(7), "none": np.zeros((0, 2))}
FACTS = {"round": 3, "table": [[1, 2], None], "name": "Zürich"}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3), max_leaves=8,
)  # fmt: skip
NUMBERS = numpy_st.arrays(
    dtype=st.sampled_from(["f4", "f8", "i8", "u1", "?", ">f4", "f2"]),
    shape=numpy_st.array_shapes(min_dims=0, min_side=0),
)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "round-3", ARRAYS, FACTS)
    return tmp_path / "round-3"


def write_rounds(folder: Path, *numbers: int) -> None:
    for number in numbers:
        write_checkpoint(folder / f"round-{number}", {"x": np.array([number])}, {"round": number})


@settings(max_examples=40, deadline=None)
@given(
    arrays=st.dictionaries(st.text("ab./", max_size=4), NUMBERS, max_size=3),
    facts=st.dictionaries(st.text("xy"), JSON),
)
def test_reads_back_what_was_written(
    arrays: dict[str, np.ndarray], facts: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("run") / "state.v1"
    write_checkpoint(path, arrays, facts)
    read, read_facts = read_checkpoint(path)
    assert read_facts == facts
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (read[name].shape, read[name].dtype.kind) == (array.shape, array.dtype.kind)
        assert read[name].tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()
        assert read[name].flags.writeable


def test_bytes_depend_on_content_alone(tmp_path: Path) -> None:
    strided = {name: np.asarray(array, order="F") for name, array in reversed(ARRAYS.items())}
    write_checkpoint(tmp_path / "a", ARRAYS, FACTS)
    write_checkpoint(tmp_path / "b", strided, dict(reversed(FACTS.items())))
    for suffix in (".safetensors", ".json"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_cut_at_any_length_it_is_refused_by_name_or_whole(written: Path, suffix: str) -> None:
    file = written.with_name(written.name + suffix)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        if whole[:length] == whole.rstrip():  # only the final line feed is gone
            assert read_checkpoint(written)[1] == FACTS
            continue
        with pytest.raises(CheckpointError, match=file.name):
            read_checkpoint(written)


@settings(max_examples=40, deadline=None)
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7), garbage=st.binary(max_size=40))
def test_changed_tensors_are_refused(
    position: int, bit: int, garbage: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("run") / "round-1"
    write_checkpoint(path, ARRAYS, FACTS)
    file = path.with_name("round-1.safetensors")
    flipped = bytearray(file.read_bytes())
    flipped[position % len(flipped)] ^= 1 << bit
    for content in (bytes(flipped), garbage, file.read_bytes() + b"\0"):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="cut short or changed"):
            read_checkpoint(path)


@pytest.mark.parametrize("content", [b"[]", b'{"facts": 1, "sha256": "x"}', b"\xff\xfe", b"[" * 100_000, b"{}"])
def test_json_of_another_kind_is_refused(written: Path, content: bytes) -> None:
    written.with_name("round-3.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"round-3\.json"):
        read_checkpoint(written)


def test_sealed_bytes_that_are_no_tensors_are_refused(written: Path) -> None:
    facts_file, tensors_file = written.with_name("round-3.json"), written.with_name("round-3.safetensors")
    tensors_file.write_bytes(b"")
    seal = json.loads(facts_file.read_bytes())
    seal["sha256"] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of no bytes
    facts_file.write_text(json.dumps(seal))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_checkpoint(written)


def test_missing_files_are_named(written: Path) -> None:
    with pytest.raises(CheckpointError, match=r"round-4\.json: No such file"):
        read_checkpoint(written.with_name("round-4"))
    written.with_name("round-3.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"round-3\.safetensors: No such file"):
        read_checkpoint(written)


@pytest.mark.parametrize(
    ("arrays", "facts"),
    [
        ({"names": np.array(["a"])}, {}),
        ({"objects": np.array([None])}, {}),
        ({}, {"loss": float("nan")}),
        ({}, {"path": Path("x")}),
        ({}, {"text": "\ud800"}),
    ],
)
def test_what_cannot_be_stored_is_refused_before_writing(
    tmp_path: Path, arrays: dict[str, np.ndarray], facts: dict[str, object]
) -> None:
    with pytest.raises((TypeError, ValueError)):
        write_checkpoint(tmp_path / "round-1", arrays, facts)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_between_the_two_files_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rounds(tmp_path, 1)
    real_replace = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if target.suffix == ".json":
            raise KeyboardInterrupt
        return real_replace(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_rounds(tmp_path, 2)
    latest, refused = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.facts == {"round": 1}
    assert len(refused) == 1
    assert "round-2.json" in refused[0]
    assert not list(tmp_path.glob(".*"))


def test_latest_goes_by_number_and_passes_over_the_unreadable(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) == (None, [])
    write_rounds(tmp_path, 2, 9, 10, 11)
    write_checkpoint(tmp_path / "final", {}, {})
    write_checkpoint(tmp_path / "round-12b", {}, {})
    latest, refused = latest_checkpoint(tmp_path)
    assert latest is not None
    assert (latest.path.name, latest.facts, latest.arrays["x"].item(), refused) == ("round-11", {"round": 11}, 11, [])
    os.truncate(tmp_path / "round-11.safetensors", 20)
    os.truncate(tmp_path / "round-10.json", 5)
    latest, refused = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.path == tmp_path / "round-9"
    assert ["round-11.safetensors" in refused[0], "round-10.json" in refused[1]] == [True, True]
    for number in (2, 9):
        (tmp_path / f"round-{number}.json").unlink()
    assert latest_checkpoint(tmp_path)[0] is None


def test_keep_last_counts_complete_checkpoints_only(tmp_path: Path) -> None:
    keep_last(tmp_path, 2)
    write_rounds(tmp_path, 8, 9, 10, 11)
    write_checkpoint(tmp_path / "final", {}, {})
    (tmp_path / "round-11.json").unlink()
    (tmp_path / "round-8.safetensors").unlink()
    (tmp_path / ".round-7.json.x1y2.tmp").touch()
    keep_last(tmp_path, 1)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {
        "round-10.json",
        "round-10.safetensors",
        "round-11.safetensors",
        "final.json",
        "final.safetensors",
    }
    with pytest.raises(ValueError, match="at least one"):
        keep_last(tmp_path, 0)


def test_atomic_write_replaces_and_sets_the_mode(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    write_atomic(file, b"old", mode=0o644)
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"old", 0o644)
    write_atomic(file, b"new")
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"new", 0o600)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state.json"
    write_atomic(file, b"old")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_atomic(file, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert file.read_bytes() == b"old"
