from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from flexmoe_core.privacy.settings import PatientPrivacy, PrivacySettings, SecureAggregation, SitePrivacy
from flexmoe_core.settings import DEFAULT_PRESET
from server.settings import settings_with
from tests.deployment.command_lines import complaint

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "privacy.md").read_text()
README = (ROOT / "README.md").read_text().partition("## Privacy")[2].partition("\n## ")[0]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)))
COMMANDS = [
    shlex.split(line, comments=True) for line in re.findall(r"^(?:\$ | {4})(flexmoe-.+)$", TEXT, re.MULTILINE)
]
README_COMMANDS = [shlex.split(line) for line in re.findall(r"^\| `(flexmoe-.+?)`", README, re.MULTILINE)]


@pytest.mark.parametrize(("file", "test"), NAMED, ids=str)
def test_every_test_that_is_named_exists(file: str, test: str) -> None:
    assert not test or re.search(rf"^def {test}\(", (ROOT / file).read_text(), flags=re.MULTILINE)
    assert (ROOT / file).is_file()


def test_every_file_that_is_named_exists() -> None:
    files = set(re.findall(r"`((?:client|server|flexmoe_core|simulations)/[\w/]+\.py)`", TEXT))
    assert len(files) > 5
    assert {file for file in files if not (ROOT / file).is_file()} == set()


@pytest.mark.parametrize("words", COMMANDS, ids=shlex.join)
def test_our_parsers_take_every_command(words: list[str]) -> None:
    assert complaint(words) == ""


@pytest.mark.parametrize("words", [words for words in COMMANDS if "--set" in words], ids=shlex.join)
def test_every_setting_that_a_command_changes_is_one(words: list[str]) -> None:
    preset = words[words.index("--preset") + 1] if "--preset" in words else DEFAULT_PRESET
    settings_with(_after(words, "--set"), preset)


def test_the_introduction_names_every_setting() -> None:
    row = next(line for line in TEXT.splitlines() if line.startswith("| settings |"))
    named = set(re.findall(r"\w+", row))
    kinds = (PrivacySettings, PatientPrivacy, SecureAggregation, SitePrivacy)
    assert {name for kind in kinds for name in kind.model_fields} <= named


def test_every_section_that_is_linked_is_there() -> None:
    anchors = {_anchor(title) for title in re.findall(r"^#+ (.+)$", TEXT, flags=re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors


def _after(words: list[str], option: str) -> Iterator[str]:
    return (value for word, value in pairwise(words) if word == option)


def _anchor(title: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
