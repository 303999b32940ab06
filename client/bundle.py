"""The final model at a site: all weights, its own effect, the table, the study and the preprocessing, sealed.

With a bundle a hospital scores new patients offline, whatever they lack.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from flexmoe_core.checkpoint import read_checkpoint, write_checkpoint
from flexmoe_core.errors import CheckpointError
from flexmoe_core.messages import Table, Terms
from flexmoe_core.modalities.registry import AnyPreprocessing
from flexmoe_core.model import FlexMoe, ModalityInput, build_model, load_parameters
from flexmoe_core.naming import under_prefix, with_prefix
from flexmoe_core.site_effect import SiteEffect
from flexmoe_core.validation import FrozenModel

STEM = "model"
EFFECT = "effect"
SEAL = "facts"  # beside the weights, whose hash stands with the facts: neither file can change alone


class BundleFacts(FrozenModel):
    """All of a bundle but its arrays. ``prior`` is the training labels' distribution at this site,
    ``preprocessing`` what makes each modality's inputs, its scale included."""

    site: str
    terms: Terms
    table: Table
    inputs: tuple[ModalityInput, ...]
    prior: tuple[float, ...]
    rounds: int
    preprocessing: dict[str, AnyPreprocessing]


@dataclass(frozen=True)
class Bundle:
    """A bundle as it was read: its facts, the model and what the site adds to it, and the SHA-256 that names it."""

    facts: BundleFacts
    model: FlexMoe
    effect: SiteEffect
    digest: str


def write_bundle(folder: Path, model: FlexMoe, effect: SiteEffect, facts: BundleFacts) -> str:
    """Write the bundle into the folder (made if absent) and answer its SHA-256."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    weights = {name: value.detach().cpu().numpy() for name, value in model.named_parameters()}
    described = facts.model_dump(mode="json")
    own = with_prefix(EFFECT, effect.to_arrays())
    write_checkpoint(folder / STEM, weights | own | {SEAL: _seal(described)}, described)
    return bundle_digest(folder)


def read_bundle(folder: Path) -> Bundle:
    """Rebuild the model; raises CheckpointError for anything that is not a whole bundle."""
    arrays, stored = read_checkpoint(folder / STEM)
    if not np.array_equal(arrays.pop(SEAL, np.empty(0)), _seal(stored)):
        raise CheckpointError(f"{folder / STEM}.json: changed since the bundle was written")
    try:
        facts = BundleFacts.model_validate(stored)
    except ValidationError as error:
        raise CheckpointError(
            f"{folder}: not a bundle of this version ({error.error_count()} facts differ)"
        ) from None
    terms = facts.terms
    model = build_model(
        terms.study.modality_names,
        facts.inputs,
        len(terms.study.label.classes),
        facts.table,
        terms.method.model,
        terms.seed,
    )
    _check_shapes(folder, model, facts, arrays)
    load_parameters(model, {name: torch.from_numpy(arrays[name]) for name, _ in model.named_parameters()})
    effect = SiteEffect.from_arrays(model.modalities, under_prefix(EFFECT, arrays))
    return Bundle(facts, model, effect, bundle_digest(folder))


def bundle_digest(folder: Path) -> str:
    """SHA-256 of the sealed facts, which hold the hash of the weights."""
    return hashlib.sha256((folder / f"{STEM}.json").read_bytes()).hexdigest()


def _seal(facts: dict[str, Any]) -> np.ndarray:
    """SHA-256 of the facts, as an array."""
    text = json.dumps(facts, sort_keys=True)
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype=np.uint8)


def _check_shapes(folder: Path, model: FlexMoe, facts: BundleFacts, arrays: dict[str, np.ndarray]) -> None:
    classes = len(facts.terms.study.label.classes)
    effect: dict[str, tuple[int, ...]] = {
        "kept": (),
        "intercept": (classes,),
        "lacking": (len(model.modalities), classes),
    }
    effect |= {f"slopes/{one.name}": (*one.shape, classes) for one in facts.inputs if len(one.shape) == 1}
    expected = {name: tuple(value.shape) for name, value in model.named_parameters()}
    expected |= {f"{EFFECT}/{name}": shape for name, shape in effect.items()}
    differing = [name for name in sorted(expected | arrays) if _shape(arrays, name) != expected.get(name)]
    if differing:
        raise CheckpointError(f"{folder}: arrays of another model ({', '.join(differing[:5])})")


def _shape(arrays: dict[str, np.ndarray], name: str) -> Sequence[int] | None:
    return arrays[name].shape if name in arrays else None
