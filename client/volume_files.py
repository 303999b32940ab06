"""One patient's volume from a .npy or NIfTI file, or what is wrong with the file. No voxel is ever shown.

Shapes: D, H, W voxels along the axes as the file stores them: nothing is turned or resampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from client.arrays import read_npy
from client.tables import LARGEST_MEASUREMENT
from flexmoe_core.modalities.volume import by_axis
from flexmoe_core.validation import Finding, Findings, raise_if_any

NPY, NIFTI = (".npy",), (".nii", ".nii.gz")
NIFTI_READER = "nibabel"
SPACING_TOLERANCE = 0.01
MILLIMETERS = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
EXPORT_AGAIN = "Export the volume again, or leave the path empty where the patient lacks it."
NO_VOLUME = Finding("names a file that cannot be read: it is truncated, or not what its name says", EXPORT_AGAIN)


@dataclass(frozen=True)
class VolumeForm:
    """What every volume of a modality looks like: its voxels, and what is declared of their spacing and range."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    range: tuple[float, float] | None


def read_volume(path: Path, form: VolumeForm) -> Tensor:
    """(D, H, W) float32, all finite. Raises Findings, which are about the line that names the file."""
    name = path.name.lower()
    if not name.endswith((*NPY, *NIFTI)):
        what = "names a file that is neither .npy nor .nii nor .nii.gz"
        raise Findings(Finding(what, "Export the volume as one of these."))
    if name.endswith(NIFTI) and find_spec(NIFTI_READER) is None:
        remedy = "Install the extra: python -m pip install 'flexmoe-federated[nifti]'. Or export it as .npy."
        raise Findings(Finding(f"names a NIfTI file, which needs the package {NIFTI_READER}", remedy))
    try:
        array = _read_npy(path, form) if name.endswith(NPY) else _read_nifti(path, form)
    except Findings:
        raise
    except OSError as error:
        if error.strerror is None:
            raise Findings(NO_VOLUME) from None
        what = f"names a file that cannot be read: {error.strerror}"
        raise Findings(Finding(what, "Correct the file or its permissions.")) from None
    except Exception:  # numpy, zlib and nibabel raise whatever a broken file makes them stumble upon
        raise Findings(NO_VOLUME) from None
    raise_if_any(_intensity_findings(array, form))
    return torch.from_numpy(array.astype(np.float32, order="C"))


def _read_npy(path: Path, form: VolumeForm) -> np.ndarray:
    with path.open("rb") as stream:
        array = read_npy(stream, path.stat().st_size)
    if array is None:
        remedy = "Save it with numpy.save as numbers of numpy.float32 or of an integer type."
        raise Findings(Finding("names a file of Python objects, which are never loaded", remedy))
    _require_form(array.dtype, array.shape, form)
    return array


def _read_nifti(path: Path, form: VolumeForm) -> np.ndarray:
    """The scaled intensities; the header is judged before the voxels are read, whose number it can exaggerate."""
    nibabel = import_module(NIFTI_READER)
    image = nibabel.load(path, mmap=False)
    if not isinstance(image, nibabel.Nifti1Image):
        raise Findings(NO_VOLUME)
    shape = tuple(int(length) for length in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    _require_form(image.get_data_dtype(), shape, form)
    if form.spacing is not None:
        unit = MILLIMETERS[image.header.get_xyzt_units()[0]]
        _require_spacing([unit * step for step in image.header.get_zooms()[:3]], form.spacing)
    intensities: np.ndarray = np.asarray(image.dataobj)
    return intensities.reshape(shape)


def _require_form(dtype: np.dtype[Any], shape: Sequence[int], form: VolumeForm) -> None:
    findings = []
    if dtype.kind not in "fiu":
        remedy = "Export real numbers: one intensity for each voxel, neither complex nor colored."
        findings.append(Finding("names a volume whose voxels are not real numbers", remedy))
    if tuple(shape) != form.shape:
        found = by_axis(tuple(shape)) if shape else "a single number"
        what = f"names a volume of {found}, not of {by_axis(form.shape)} voxels"
        findings.append(Finding(what, "Resample it beforehand to the declared shape: nothing is resampled here."))
    if findings:
        raise Findings(*findings)


def _intensity_findings(array: np.ndarray, form: VolumeForm) -> Iterator[Finding]:
    if not np.isfinite(array).all():
        what = "names a volume with voxels that are NaN or infinite"
        yield Finding(what, "Fill them, as with the intensity of the background.")
    elif max(float(array.max()), -float(array.min())) > LARGEST_MEASUREMENT:
        yield Finding("names a volume with intensities too large to be meant", "Correct the volume.")
    elif form.range is not None and not ((array >= form.range[0]) & (array <= form.range[1])).any():
        what = f"names a volume without any voxel in the range {form.range[0]:.15g} to {form.range[1]:.15g}"
        yield Finding(what, "Correct the volume or its unit.")


def _require_spacing(found: Sequence[float], wanted: Sequence[float]) -> None:
    """Both in millimeters."""
    if not (np.abs(np.divide(found, wanted) - 1) <= SPACING_TOLERANCE).all():
        what = f"names a volume of another voxel spacing than {by_axis(tuple(wanted))} mm"
        raise Findings(Finding(what, "Resample it beforehand to the declared spacing, or correct its header."))
