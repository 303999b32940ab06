"""Settings that would break a guarantee are refused by name, at the coordinator and at every site."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from flexmoe_core.messages import Terms
from flexmoe_core.privacy.rules import findings_of_method
from flexmoe_core.privacy.settings import PatientPrivacy, PrivacySettings
from flexmoe_core.settings import PRESETS, MethodSettings, private
from tests.flexmoe_core.test_messages import TERMS

PRIVATE = PrivacySettings(patient=PatientPrivacy(epsilon=1.0))
BREAKING: list[tuple[str, dict[str, Any]]] = [
    ("method.losses.balance", {"losses": {"balance": 0.01}}),
    ("method.model.balancing", {"model": {"balancing": "bias"}}),
    ("method.site", {"site": {"intercept": 1.0}}),
    ("method.site", {"site": {"regression": [1.0]}}),
    ("method.training.precision", {"training": {"precision": "bfloat16"}}),
]


def changed(changes: dict[str, dict[str, Any]]) -> MethodSettings:
    settings = private().model_dump()
    for section, values in changes.items():
        settings[section] |= values
    return MethodSettings.model_validate(settings)


@pytest.mark.parametrize(("place", "changes"), BREAKING)
def test_what_breaks_a_guarantee_is_named(place: str, changes: dict[str, dict[str, Any]]) -> None:
    method = changed(changes)
    assert [finding.place for finding in findings_of_method(method, PRIVATE)] == [place]
    assert not list(findings_of_method(method, PrivacySettings()))
    with pytest.raises(ValidationError):
        Terms.model_validate(TERMS.model_dump() | {"method": method, "privacy": PRIVATE})


def test_the_preset_private_breaks_none_and_the_others_do() -> None:
    broken = {name for name, preset in PRESETS.items() if list(findings_of_method(preset(), PRIVATE))}
    assert broken == PRESETS.keys() - {"private"}
