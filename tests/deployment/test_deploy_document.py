from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from flexmoe_core.messages import FinishReply, HandshakeReply, TrainReply
from flexmoe_core.validation import FrozenModel
from tests.deployment.command_lines import commands_in, complaint, fenced_lines

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "deploy.md").read_text()
UNITS = re.findall(r"^ExecStart=\S*/(flexmoe-.+)$", TEXT, flags=re.MULTILINE)
COMMANDS = [*commands_in(TEXT), *map(shlex.split, UNITS)]
VERBS = {
    "flexmoe-server": {"init", "enroll", "start", "run", "status", "stop", "resume", "renew", "revoke", "health"},
    "flexmoe-client": {"keygen", "check", "ledger", "privacy", "roster", "allow", "start", "status", "health"}
    | {"predict", "audit"},
}


@pytest.mark.parametrize("words", COMMANDS, ids=shlex.join)
def test_our_parsers_take_every_command(words: list[str]) -> None:
    assert complaint(words) == ""


@pytest.mark.parametrize("program", VERBS)
def test_every_step_has_its_command(program: str) -> None:
    assert VERBS[program] <= {words[1] for words in COMMANDS if words[0] == program}


def test_commands_of_continued_and_prefixed_lines_are_found() -> None:
    text = "```sh\ndocker compose run x \\\n    flexmoe-server start DIR # now\necho no\n```\nflexmoe-server no\n"
    assert list(commands_in(text)) == [["flexmoe-server", "start", "DIR"]]


def test_containers_that_commands_run_in_exist() -> None:
    services = set(yaml.safe_load((ROOT / "compose.yaml").read_text())["services"])
    lines = [shlex.split(line) for line in fenced_lines(TEXT) if line.startswith("docker compose")]
    named = {word for words in lines for word in words if re.fullmatch(r"coordinator|hospital-\d+", word)}
    assert {"coordinator", "hospital-1"} <= named <= services


@pytest.mark.parametrize("reply", [HandshakeReply, TrainReply, FinishReply])
def test_the_table_of_what_leaves_names_every_fact(reply: type[FrozenModel]) -> None:
    table = TEXT.partition("### What leaves the building")[2].partition("###")[0]
    assert {name for name in reply.model_fields if f"`{name}`" not in table} == set()
