"""Sites that lie in a masked run: what the coordinator notices, whom it can name, and what a round costs then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client import app, masked_answers
from client.site import Site
from flexmoe_core.masked_messages import SharesReply, UnmaskReply
from flexmoe_core.messages import TrainReply, decode, encode
from server.run_store import RunStore
from simulations.runs import simulate
from tests.simulations.federations import tiny_settings, tiny_study

LIAR = "site-2"
SETTINGS = ("privacy.secure_aggregation.threshold=2", "federation.rounds=2", "federation.min_aggregated=0.1")
Arrays = dict[str, np.ndarray]
Lie = Callable[[TrainReply, Arrays], tuple[TrainReply, Arrays]]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_study(tmp_path_factory.mktemp("study") / "sites")


def run_with_lie(study: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, lie: Lie) -> RunStore:
    """The liar trains as it should, and sends something else in round 1."""
    train = Site.train

    def lying(site: Site, request: bytes) -> bytes:
        answer = train(site, request)
        reply, arrays = decode(answer, TrainReply)
        return encode(*lie(reply, arrays)) if site.name == LIAR and reply.round == 1 else answer

    monkeypatch.setattr(Site, "train", lying)
    return simulate(study, folder, tiny_settings(*SETTINGS))


def of_another_length(reply: TrainReply, arrays: Arrays) -> tuple[TrainReply, Arrays]:
    return reply, {name: value[:-1] for name, value in arrays.items()}


def of_another_kind(reply: TrainReply, arrays: Arrays) -> tuple[TrainReply, Arrays]:
    return reply, {name: value.astype(np.float64) for name, value in arrays.items()}


def with_more(reply: TrainReply, arrays: Arrays) -> tuple[TrainReply, Arrays]:
    return reply, arrays | {"weighted/head.weight": np.zeros(3, np.float32)}


def not_masked(reply: TrainReply, _: Arrays) -> tuple[TrainReply, Arrays]:
    return reply.model_copy(update={"masked": None, "loss": 0.5}), {}


def with_another_statement(reply: TrainReply, arrays: Arrays) -> tuple[TrainReply, Arrays]:
    assert reply.masked is not None and reply.masked.statement is not None
    forged = reply.masked.statement.model_copy(update={"received": "a" * 64})
    return reply.model_copy(update={"masked": reply.masked.model_copy(update={"statement": forged})}), arrays


@pytest.mark.parametrize(
    ("lie", "what"),
    [
        (of_another_length, "another length"),
        (of_another_kind, "does not hold one masked vector"),
        (with_more, "does not hold one masked vector"),
        (not_masked, "not masked"),
        (with_another_statement, "did not sign"),
    ],
)
def test_a_reply_of_another_form_costs_its_site_the_round(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: Lie, what: str
) -> None:
    row = run_with_lie(study, tmp_path / "run", monkeypatch, lie).history()[0]
    assert row["aggregated"] and row["answered"] == ["site-1", "site-3"]
    assert what in row["dropped"][LIAR][0]


def test_a_vector_that_is_not_what_was_masked_costs_the_round_and_names_nobody(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_bits(reply: TrainReply, arrays: Arrays) -> tuple[TrainReply, Arrays]:
        return reply, {"masked/vector": arrays["masked/vector"] + np.uint64(2**62)}

    rows = run_with_lie(study, tmp_path / "run", monkeypatch, other_bits).history()
    assert [row["aggregated"] for row in rows] == [False, True]
    assert "not a sum of what the sites sent" in rows[0]["masked"]["problem"]
    assert rows[0]["dropped"] == {}


def test_numbers_outside_the_range_cost_the_round(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(reply: TrainReply, arrays: Arrays) -> tuple[TrainReply, Arrays]:
        vector_V = arrays["masked/vector"].copy()
        vector_V[0] += np.uint64(2**60)
        return reply, {"masked/vector": vector_V}

    rows = run_with_lie(study, tmp_path / "run", monkeypatch, too_large).history()
    assert not rows[0]["aggregated"] and "outside its range" in rows[0]["masked"]["problem"]


def test_wrong_shares_of_one_site_are_left_out(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unmask = masked_answers.unmask

    def lying(site: Site, request: bytes) -> bytes:
        answer = unmask(site, request)
        reply, _ = decode(answer, UnmaskReply)
        if site.name != LIAR or reply.shares is None:
            return answer
        wrong = dict.fromkeys(reply.shares.seeds, "00" * 33)
        return encode(reply.model_copy(update={"shares": reply.shares.model_copy(update={"seeds": wrong})}))

    monkeypatch.setattr(app.masked_answers, "unmask", lying)
    rows = simulate(study, tmp_path / "run", tiny_settings(*SETTINGS)).history()
    assert all(row["aggregated"] for row in rows)


def test_a_site_that_deals_to_some_alone_is_not_in_the_cohort(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = masked_answers.shares

    def lying(site: Site, request: bytes) -> bytes:
        reply, _ = decode(shares(site, request), SharesReply)
        sealed = dict(list(reply.sealed.items())[:1]) if site.name == LIAR else reply.sealed
        return encode(reply.model_copy(update={"sealed": sealed}))

    monkeypatch.setattr(app.masked_answers, "shares", lying)
    settings = tiny_settings(*SETTINGS, "federation.rounds=1")
    store = simulate(study, tmp_path / "run", settings)
    assert LIAR in store.history()[0]["masked"]["cohort"], "it was back after the count"
