"""Atomic files, and checkpoints that are whole or not there: safetensors and a JSON that seals them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from flexmoe_core.errors import CheckpointError


class Checkpoint(NamedTuple):
    """A checkpoint as it was read; ``path`` carries no suffix."""

    path: Path
    arrays: dict[str, NDArray[Any]]
    facts: dict[str, Any]


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file that other processes, and the disk after a power cut, see whole or not at all.

    The temporary file is in the same folder, private until its ``mode`` is set; an existing file is replaced.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)  # the rename itself must survive a power cut


def sync_folder(folder: Path) -> None:
    """Let the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_checkpoint(path: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> str:
    """Write ``<path>.safetensors``, then ``<path>.json`` with the facts and the hash of the first.

    Gives the SHA-256 of the second, which seals both.

    ``path`` carries no suffix. Equal content gives equal bytes, whatever the order of the mappings. A kill at
    any point leaves a pair that reads as it was written or is refused. Raises ``ValueError`` or ``TypeError``
    on facts that are not JSON (NaN included) and on arrays that are not numbers, before anything is written.
    """
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} is an array of {array.dtype}; a checkpoint holds numbers")
    ordered = {name: _little_endian(arrays[name]) for name in sorted(arrays)}
    tensors = save(ordered)
    seal = {"facts": dict(facts), "sha256": hashlib.sha256(tensors).hexdigest()}
    text = json.dumps(seal, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    sealed = f"{text}\n".encode()
    write_atomic(_tensors_file(path), tensors)
    write_atomic(_facts_file(path), sealed)
    return hashlib.sha256(sealed).hexdigest()


def read_checkpoint(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays (writable) and facts of the checkpoint at ``path``, which carries no suffix.

    Raises ``CheckpointError`` naming the file and what is wrong: missing, unreadable, cut short or changed.
    """
    facts_file, tensors_file = _facts_file(path), _tensors_file(path)
    try:
        seal = json.loads(_read(facts_file))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{facts_file}: not whole JSON ({error})") from error
    match seal:
        case {"facts": dict() as facts, "sha256": str() as sha256}:
            pass
        case _:
            raise CheckpointError(f"{facts_file}: not the facts of a checkpoint")
    tensors = _read(tensors_file)
    if hashlib.sha256(tensors).hexdigest() != sha256:
        raise CheckpointError(f"{tensors_file}: cut short or changed; {facts_file.name} has another hash")
    try:
        return load(tensors), facts
    except SafetensorError as error:
        raise CheckpointError(f"{tensors_file}: not a safetensors file ({error})") from error


def latest_checkpoint(folder: Path, prefix: str = "round-") -> tuple[Checkpoint | None, list[str]]:
    """The readable checkpoint ``<prefix><number>`` of the highest number, and why newer ones were refused.

    None when the folder holds no readable one.
    """
    refused: list[str] = []
    for path in reversed(_numbered(folder, prefix)):
        try:
            arrays, facts = read_checkpoint(path)
        except CheckpointError as error:
            refused.append(str(error))
        else:
            return Checkpoint(path, arrays, facts), refused
    return None, refused


def keep_last(folder: Path, n: int, prefix: str = "round-") -> None:
    """Delete all but the ``n`` newest complete checkpoints, and what killed writes of them left behind.

    A half-written checkpoint never counts as one of the n. The folder has one writer, who calls this.
    """
    if n < 1:
        raise ValueError("at least one checkpoint must be kept")
    for leftover in folder.glob(f".{prefix}*.tmp"):
        leftover.unlink(missing_ok=True)
    numbered = _numbered(folder, prefix)
    complete = [path for path in numbered if _facts_file(path).exists() and _tensors_file(path).exists()]
    if not complete:
        return
    oldest_kept = complete[-n:][0]
    for path in numbered[: numbered.index(oldest_kept)]:
        _facts_file(path).unlink(missing_ok=True)  # first: without it the pair is not there
        _tensors_file(path).unlink(missing_ok=True)


def _numbered(folder: Path, prefix: str) -> list[Path]:
    """Checkpoints of which at least one file exists, without suffix, by ascending number."""
    pattern = re.compile(rf"({re.escape(prefix)}([0-9]+))\.(?:json|safetensors)")
    found = {
        (int(match[2]), folder / match[1]) for file in folder.glob("*") if (match := pattern.fullmatch(file.name))
    }
    return [path for _, path in sorted(found)]


def _tensors_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.safetensors")


def _facts_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror or error}") from error


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    """The layout that safetensors stores; its writer ignores strides."""
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
