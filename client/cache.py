"""Parsed patients of a site, kept as safetensors: every message of a deployment runs in a new process.

A split has a file of its own, so that test labels stay unread until somebody asks for them. A file counts only
while study, manifest and all data files are unchanged; anything else is read anew and replaced.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from client.entries import SiteManifest, read_site_manifest, require_declared_scales
from client.manifest import MANIFEST_FILE, Manifest, site_file
from client.patients import SPLITS
from client.site_data import PREPROCESSING, SiteData, read_site
from flexmoe_core.checkpoint import read_checkpoint, write_checkpoint
from flexmoe_core.cohort import Cohort
from flexmoe_core.errors import CheckpointError, InputError, Problem
from flexmoe_core.modalities.registry import AnyPreprocessing
from flexmoe_core.study import Study

FORMAT = "2"  # raise it whenever the same files would be parsed to other tensors
INPUT_PREFIX = "inputs/"


@dataclass(frozen=True)
class _CachedSplit:
    preprocessing: Mapping[str, AnyPreprocessing]
    cohort: Cohort
    ids: tuple[str, ...]


def load_site(
    folder: Path, study: Study, splits: Collection[str], cache_folder: Path | None, *, fitting: bool = True
) -> SiteData:
    """``read_site`` by way of the cache; without a cache folder nothing is kept. Raises InputError.

    Both ways of ``fitting`` share the cache: without it every scale is declared, and then there is nothing to fit.
    """
    if cache_folder is None or not splits:
        return read_site(folder, study, splits, fitting=fitting)
    declared = read_site_manifest(folder, study)
    if not fitting:  # before the key, which patients' files are read for
        require_declared_scales(declared, study, str(folder / MANIFEST_FILE))
    key = _key(folder, declared, study)
    paths = {split: cache_folder / f"{study.name}-{split}" for split in SPLITS if split in splits}
    cached = {split: found for split, path in paths.items() if key and (found := _read(path, key))}
    lacking = [split for split in paths if split not in cached]
    if lacking:
        fresh = read_site(folder, study, lacking, fitting=fitting)
        if key:
            _write(cache_folder, {split: paths[split] for split in lacking}, key, fresh)
        cached |= {
            split: _CachedSplit(fresh.preprocessing, fresh.cohorts[split], fresh.ids[split]) for split in lacking
        }
    return SiteData(
        name=declared.manifest.site.name,
        public=declared.manifest.public,
        modalities=tuple(entry.name for entry in declared.entries),
        preprocessing=next(iter(cached.values())).preprocessing,
        cohorts={split: cached[split].cohort for split in paths},
        ids={split: cached[split].ids for split in paths},
    )


def _key(folder: Path, declared: SiteManifest[Manifest], study: Study) -> str | None:
    """SHA-256 of all that the tensors depend on; None where a file cannot be read, which reading will explain."""
    try:
        digests = [
            _file_digest(folder / MANIFEST_FILE),
            *(_file_digest(site_file(folder, name, "")) for name in declared.files(folder)),
        ]
    except (InputError, OSError):
        return None
    return hashlib.sha256("\n".join([FORMAT, study.to_json(), *digests]).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path, key: str) -> _CachedSplit | None:
    """The split cached under the key; None if there is none, or it is not whole."""
    try:
        arrays, facts = read_checkpoint(path)
    except CheckpointError:
        return None
    if facts != {"key": key}:
        return None
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return _CachedSplit(
        preprocessing=PREPROCESSING.validate_json(arrays["preprocessing"].tobytes()),
        cohort=Cohort(
            inputs={
                name.removeprefix(INPUT_PREFIX): x_BF
                for name, x_BF in tensors.items()
                if name.startswith(INPUT_PREFIX)
            },
            observed_BM=tensors["observed"],
            labels_B=tensors["labels"],
        ),
        ids=tuple(json.loads(arrays["ids"].tobytes())),
    )


def _write(cache_folder: Path, paths: dict[str, Path], key: str, data: SiteData) -> None:
    preprocessing = np.frombuffer(PREPROCESSING.dump_json(dict(data.preprocessing)), dtype=np.uint8)
    try:
        cache_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for split, path in paths.items():
            cohort = data.cohorts[split]
            arrays = {f"{INPUT_PREFIX}{name}": x_BF.numpy() for name, x_BF in cohort.inputs.items()} | {
                "observed": cohort.observed_BM.numpy(),
                "labels": cohort.labels_B.numpy(),
                "ids": _bytes(json.dumps(data.ids[split])),
                "preprocessing": preprocessing,
            }
            write_checkpoint(path, arrays, {"key": key})
    except OSError as error:
        what = f"cannot be written: {error.strerror or 'unknown reason'}"
        problem = Problem(str(cache_folder), "", what, "Free space there, or correct its permissions.")
        raise InputError([problem]) from None


def _bytes(text: str) -> np.ndarray:
    """Text as an array, so that the checkpoint's seal covers it."""
    return np.frombuffer(text.encode(), dtype=np.uint8)
