"""What protects a run, in the words of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flexmoe_core.privacy.settings import PrivacySettings
from server.settings import RunSettings

NONE = "no protection"


def protection_of(privacy: PrivacySettings) -> str:
    """``patient DP, epsilon 8``; several protections one after the other."""
    parts = []
    if privacy.patient is not None:
        parts.append(f"patient DP, epsilon {privacy.patient.epsilon:g}")
    if privacy.site is not None:
        parts.append(f"site DP, epsilon {privacy.site.epsilon:g}")
    if privacy.secure_aggregation is not None:
        parts.append("secure aggregation")
    return ", ".join(parts) or NONE


def titles_of(runs: Sequence[RunSettings]) -> list[str]:
    """The protection of each of some different settings, and what else tells those of the same one apart."""
    names = [protection_of(run.privacy) for run in runs]
    flat = [dict(_flattened(run.model_dump(mode="json", exclude={"seed"}))) for run in runs]
    titles = []
    for name, own in zip(names, flat, strict=True):
        alike = [other for other_name, other in zip(names, flat, strict=True) if other_name == name]
        differing = [key for key in own if any(other.get(key) != own[key] for other in alike)]
        titles.append(", ".join([name, *(f"{key.rpartition('.')[2]} {own[key]}" for key in differing)]))
    return titles


def _flattened(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, object]]:
    """Values by dotted key."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
