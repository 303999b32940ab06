"""A site's record against the coordinator's: what the site said of its record when it answered still has to hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flexmoe_core.audit_line import EMPTY, Head
from flexmoe_core.audit_verify import Verdict
from flexmoe_core.errors import Problem
from server.record import ANSWERED, RESUMED, STARTED

REMEDY = "Ask the site for its whole record, and who could write to it."


@dataclass(frozen=True)
class Comparison:
    """What was compared, in words, and what does not fit."""

    found: tuple[str, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class _Answer:
    """An answer as the coordinator has recorded it: in which line, to what, its hash, and the site's head before."""

    line: int
    question: str
    sha256: str
    head: Head | None


def compare(run: Verdict, site: Verdict) -> Comparison:
    """Check a copy of a site's record against the heads and answers that the coordinator recorded of the site."""
    runs = {entry.facts.get("run") for entry in run.entries if entry.event in (STARTED, RESUMED)}
    told = [entry for entry in site.entries if entry.event == ANSWERED and entry.facts.get("run") in runs]
    names = sorted({str(entry.facts.get("site")) for entry in told})
    if len(names) != 1:
        what = "tells of no answer in this run" if not names else f"tells of several sites: {', '.join(names)}"
        return Comparison((), (*site.problems, Problem(str(site.path), "", what, REMEDY)))
    try:
        answers = list(_answers(run, names[0]))
    except (LookupError, TypeError, ValueError, AttributeError):
        what = "is not the record of a run"
        return Comparison((), (*site.problems, Problem(str(run.path), "", what, "Name the run's folder.")))
    chain = {EMPTY, *(entry.head for entry in site.entries)}
    sent = {(entry.facts.get("reply") or {}).get("sha256") for entry in told}
    problems = [*site.problems]
    for answer in answers:
        place = f"line {answer.line}"
        if answer.head is not None and answer.head not in chain:
            problems.append(Problem(str(run.path), place, _lost(answer.head, names[0], site), REMEDY))
        if answer.sha256 not in sent:
            what = f"{names[0]} has answered this {answer.question}, and {site.path} does not tell of it"
            problems.append(Problem(str(run.path), place, what, REMEDY))
    heads = sum(answer.head is not None for answer in answers)
    if not heads:
        what = f"holds no head of the record of {names[0]}: nothing can be compared"
        problems.append(Problem(str(run.path), "", what, REMEDY))
    end = f"{site.lines} lines, head {site.head.hash}"
    found = f"Site      {names[0]}: {heads} heads and {len(answers)} answers compared with {site.path} ({end})"
    return Comparison((found,), tuple(problems))


def _lost(head: Head, name: str, site: Verdict) -> str:
    if head.count > site.head.count:
        return f"{name} had {head.count} lines then, and {site.path} has {site.head.count}"
    return f"line {head.count} of {site.path} is not the one that {name} had then"


def _answers(run: Verdict, site: str) -> Iterator[_Answer]:
    """The site's answers. A handshake knows nodes by number; it says which site each of them is."""
    for entry in run.entries:
        if entry.event != ANSWERED:
            continue
        facts = entry.facts
        name = site if "nodes" not in facts else f"node {facts['nodes'].get(site)}"
        if name in facts["answers"]:
            yield _answer(entry.number, facts["question"], facts["answers"][name])


def _answer(line: int, question: str, facts: dict[str, Any]) -> _Answer:
    head = facts["head"]
    return _Answer(line, question, facts["sha256"], None if head is None else Head(head["count"], head["hash"]))
