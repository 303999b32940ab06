"""NumPy files of a hospital. Nothing in them is ever unpickled, and none can ask for more memory than it fills."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np

from flexmoe_core.errors import InputError, Problem

SAVE_AGAIN = "Save it again with numpy.savez, as plain numbers and text."


def read_npz(path: Path, file: str, names: Collection[str]) -> dict[str, np.ndarray]:
    """The named arrays of a .npz file; ``file`` is the path as the user knows it.

    Raises InputError when the file is no such archive, lacks one of them, or holds objects instead of numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            arrays = {name: _member(archive, members[name]) for name in names if name in members}
    except OSError as error:
        reason = error.strerror or "it is truncated or not what its name says"
        problem = Problem(file, "", f"cannot be read: {reason}", "Correct the file or its permissions.")
        raise InputError([problem]) from None
    except Exception:  # zipfile, zlib and numpy raise whatever a broken file makes them stumble upon
        what = "cannot be read as .npz: it is truncated, or not what its name says"
        raise InputError([Problem(file, "", what, SAVE_AGAIN)]) from None
    problems = [_absent(file, name) for name in names if name not in arrays]
    problems += [_holds_objects(file, name) for name, array in arrays.items() if array is None]
    if problems:
        raise InputError(problems)
    return {name: array for name, array in arrays.items() if array is not None}


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray | None:
    """One array; None where it holds objects, which only a pickle could restore."""
    with archive.open(info) as stream:
        return read_npy(stream, info.file_size)


def read_npy(stream: IO[bytes], size: int) -> np.ndarray | None:
    """The array in ``size`` bytes of .npy; None for objects. Raises ValueError, among others, when they are none."""
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read_header(stream)
    if dtype.hasobject:
        return None
    if stream.tell() + math.prod(shape) * dtype.itemsize != size:
        raise ValueError("the header does not fit the content")
    return np.ndarray(shape, dtype, stream.read(), order="F" if fortran_order else "C")


def _absent(file: str, name: str) -> Problem:
    return Problem(file, "", f"has no array '{name}'", "Save it under this name.")


def _holds_objects(file: str, name: str) -> Problem:
    return Problem(file, f"array {name}", "holds Python objects, which are never loaded", SAVE_AGAIN)
