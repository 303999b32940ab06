"""The closed list of what leaves a hospital: one module makes every answer, and private ones from nothing private."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_type_hints

import pytest

import client
from client import egress, private_answers

PACKAGE = Path(client.__file__).parent
PUBLIC_TYPES = {
    "str",
    "client.entries.SiteManifest[client.manifest.Manifest]",
    "client.masking.MaskedVector",
    "flexmoe_core.messages.TrainRequest",
    "flexmoe_core.privacy.noised_update.NoisedUpdate",
    "collections.abc.Mapping[str, flexmoe_core.privacy.released_scores.ReleasedScores]",
}
"""What a private answer may be made of: names, declarations, requests, and what noise has gone into."""


def calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call of that name in the hospital's code, with its file."""
    for file in sorted(PACKAGE.glob("**/*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            if (isinstance(called, ast.Name) and called.id == name) or (
                isinstance(called, ast.Attribute) and called.attr == name
            ):
                assert isinstance(node, ast.Call)
                yield file.name, node


def type_name(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) and hint.__module__ == "builtins" else _qualified(hint)


def _qualified(hint: object) -> str:
    text = repr(hint)
    return f"{hint.__module__}.{hint.__qualname__}" if isinstance(hint, type) and "[" not in text else text


def used_by_private_answers() -> list[Callable[..., object]]:
    """The functions of the egress that the private answers call."""
    tree = ast.parse(inspect.getsource(private_answers))
    imported = next(
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "client.egress"
    )
    return [getattr(egress, one.name) for one in imported.names if one.name != "Outgoing"]


@pytest.mark.parametrize(("name", "only"), [("Outgoing", "egress.py"), ("Message", "app.py")])
def test_answers_and_messages_are_made_in_one_place_each(name: str, only: str) -> None:
    assert {file for file, _ in calls(name)} == {only}


def test_no_reply_is_encoded_anywhere_else() -> None:
    replies = {"HandshakeReply", "TrainReply", "FinishReply", "CountReply"}
    assert {file for reply in replies for file, _ in calls(reply)} == {"egress.py"}


def test_private_answers_can_only_be_made_of_what_is_public_or_noised() -> None:
    functions = used_by_private_answers()
    assert len(functions) == 4
    for function in functions:
        hints = get_type_hints(function)
        assert hints.pop("return") is egress.Outgoing
        assert {type_name(hint) for hint in hints.values()} <= PUBLIC_TYPES, function.__name__


def test_noised_updates_are_made_where_noise_is_added_alone() -> None:
    assert not list(calls("NoisedUpdate"))
    assert not list(calls("ReleasedScores"))
