"""What protects a run, in the words of a table."""

from __future__ import annotations

from flexmoe_core.privacy.settings import PrivacySettings

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
