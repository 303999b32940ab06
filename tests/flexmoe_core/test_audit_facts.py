from __future__ import annotations

import hashlib

import pytest

from flexmoe_core.audit_facts import PrivacyCost, bundle_of, bytes_facts


@pytest.mark.parametrize(
    ("environment", "bundle"),
    [
        ({"FLEXMOE_BUNDLE": "ab" * 32}, "ab" * 32),
        ({"FLEXMOE_BUNDLE": "sha256:ab"}, "sha256:ab"),
        ({"FLEXMOE_BUNDLE": ""}, None),
        ({"FLEXMOE_BUNDLE": "two words"}, None),
        ({"FLEXMOE_BUNDLE": "x" * 129}, None),
        ({}, None),
    ],
)
def test_the_bundle_is_what_the_environment_names(environment: dict[str, str], bundle: str | None) -> None:
    assert bundle_of(environment) == bundle


def test_bytes_are_named_by_size_and_hash() -> None:
    assert bytes_facts(b"abc") == {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}


def test_without_a_mechanism_privacy_costs_are_none() -> None:
    assert PrivacyCost().to_facts() == {"mechanism": "none"}
