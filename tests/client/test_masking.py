"""What a hospital's side of masked sums answers and refuses, request by request."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from client import masked_answers
from client.keys import make_keys
from client.masking import Masker, Membership, masker_for
from client.site import Site
from client.state import RunState
from flexmoe_core.checkpoint import write_atomic
from flexmoe_core.enrollment import Member, Roster
from flexmoe_core.errors import MaskingRefused, MessageError
from flexmoe_core.masked_messages import (
    CountReply,
    CountRequest,
    KeysReply,
    KeysRequest,
    SharesReply,
    SharesRequest,
    UnmaskReply,
    UnmaskRequest,
)
from flexmoe_core.messages import (
    FinishReply,
    FinishRequest,
    Masking,
    TrainReply,
    TrainRequest,
    decode,
    encode,
    outline,
)
from flexmoe_core.privacy.settings import PrivacySettings, SecureAggregation
from flexmoe_core.secure_aggregation.keys import PublicKeys
from flexmoe_core.signatures import digest_of
from tests.client.conftest import SiteFolder
from tests.client.coordinator import Coordinator, coordinate, make_cpu_site

NAMES = ("cleveland", "north", "south")
Sealed = Mapping[str, bytes]


class Federation:
    """One hospital with patients, and two that are keys alone, so that a test can say anything in their names."""

    def __init__(self, site: SiteFolder, folder: Path, masks: SecureAggregation) -> None:
        now = datetime.now(UTC)
        enrolled = {name: make_keys(folder / name, name) for name in NAMES}
        members = [Member(**one.model_dump(exclude={"format"}), enrolled=now) for one in enrolled.values()]
        self.roster = folder / "roster.json"
        write_atomic(self.roster, Roster(members=tuple(members)).model_dump_json().encode())
        plain = make_cpu_site(site.path, folder / "state")
        of_plain = coordinate(site.study(), plain)
        terms = of_plain.terms.model_copy(
            update={"privacy": PrivacySettings(secure_aggregation=masks), "run": "ab" * 16}
        )
        self.coordinator = Coordinator(terms, of_plain.table)
        self.terms = terms
        self.sites = {name: self._site(plain, folder, name) for name in NAMES}
        self.site = self.sites["cleveland"]

    def _site(self, plain: Site, folder: Path, name: str) -> Site:
        membership = Membership(folder / name / "identity_key", self.roster)
        state = folder / "state" if name == "cleveland" else folder / name / "state"
        return replace(plain, state=state, membership=membership)

    def masker(self, name: str) -> Masker:
        site = self.sites[name]
        masker = masker_for(name, RunState(site.state, self.terms.run), self.terms, site.membership, {})
        assert masker is not None
        return masker

    def exchange(self, round_number: int = 1, attempt: int = 1) -> Sealed:
        """Keys and shares of all, by the requests for the first; what the others sealed for it."""
        facts = {"terms": self.terms, "round": round_number, "attempt": attempt}
        reply, _ = decode(masked_answers.keys(self.site, encode(KeysRequest(**facts))), KeysReply)
        keys: list[PublicKeys] = [
            reply.keys,
            *(self.masker(name).keys(round_number, attempt) for name in NAMES[1:]),
        ]
        request = encode(SharesRequest(**facts, keys=tuple(keys)))
        dealt, _ = decode(masked_answers.shares(self.site, request), SharesReply)
        assert dealt.sealed.keys() == set(NAMES[1:])
        others = {name: self.masker(name).shares(round_number, attempt, keys) for name in NAMES[1:]}
        return {name: bytes.fromhex(sealed["cleveland"]) for name, sealed in others.items()}

    def masking(self, **changes: object) -> Masking:
        return Masking(**({"attempt": 1, "cohort": NAMES} | changes))

    def train(self, masking: Masking | None, round_number: int = 1) -> bytes:
        request = TrainRequest(
            terms=self.terms,
            table=self.coordinator.table,
            round=round_number,
            attempt=masking.attempt if masking else 1,
            masking=masking,
        )
        return encode(request, self.coordinator.state())

    def with_sealed(self, sealed: Sealed) -> Site:
        return replace(self.site, sealed=sealed)


@pytest.fixture
def federation(site: SiteFolder, tmp_path: Path) -> Federation:
    return Federation(site, tmp_path / "federation", SecureAggregation(threshold=2))


def test_a_round_sends_a_masked_vector_keys_and_no_loss(federation: Federation) -> None:
    site = federation.with_sealed(federation.exchange())
    request = federation.train(federation.masking())
    answer = site.train(request)
    reply, arrays = decode(answer, TrainReply)
    assert reply.loss is None and reply.masked is not None
    assert arrays.keys() == {"masked/vector"} and arrays["masked/vector"].dtype == np.uint64
    assert reply.masked.statement is not None and reply.masked.statement.site == "cleveland"
    assert reply.masked.keys is not None and reply.masked.keys.place.round == 2
    assert site.train(request) == answer, "the stored answer, not a second vector"


def test_a_site_outside_the_cohort_trains_nothing_and_announces_keys(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.open_answers.train_round", None)  # training would be an error
    federation.exchange()
    reply, arrays = decode(federation.site.train(federation.train(federation.masking(cohort=NAMES[1:]))), TrainReply)
    assert reply.masked is not None and reply.masked.statement is None and reply.masked.keys is not None
    assert arrays == {}


def test_a_plain_update_is_refused_in_a_masked_run(federation: Federation) -> None:
    with pytest.raises(MessageError, match="masks are used where the run's terms say so"):
        federation.site.train(_plain_in_masked_terms(federation))
    federation.exchange()
    plain = Coordinator(
        federation.terms.model_copy(update={"privacy": PrivacySettings()}), federation.coordinator.table
    )
    with pytest.raises(MaskingRefused, match="would not any more"):
        federation.site.train(plain.train())


def _plain_in_masked_terms(federation: Federation) -> bytes:
    request = TrainRequest.model_construct(
        terms=federation.terms, table=federation.coordinator.table, round=1, attempt=1, masking=None
    )
    return encode(request, federation.coordinator.state())


def test_masks_in_a_plain_run_are_refused(federation: Federation) -> None:
    terms = federation.terms.model_copy(update={"privacy": PrivacySettings(), "run": "cd" * 16})
    with pytest.raises(MaskingRefused, match="terms have none"):
        masked_answers.keys(federation.site, encode(KeysRequest(terms=terms, round=1, attempt=1)))


@pytest.mark.parametrize("what", ["nothing", "no roster", "no identity"])
def test_without_key_or_roster_nothing_is_masked(federation: Federation, tmp_path: Path, what: str) -> None:
    known = federation.site.membership
    membership = {
        "nothing": Membership(),
        "no roster": replace(known, roster=tmp_path / "none.json"),
        "no identity": replace(known, identity=None),
    }[what]
    request = encode(KeysRequest(terms=federation.terms, round=1, attempt=1))
    with pytest.raises(MaskingRefused, match="flexmoe-client roster"):
        masked_answers.keys(replace(federation.site, membership=membership), request)


def test_a_hospital_may_ask_for_larger_sums(federation: Federation) -> None:
    careful = replace(federation.site, membership=replace(federation.site.membership, least_sum=3))
    with pytest.raises(MaskingRefused, match="sums of 2 honest sites would be possible, 3 are required"):
        masked_answers.keys(careful, encode(KeysRequest(terms=federation.terms, round=1, attempt=1)))


def test_other_terms_in_the_same_round_are_refused(federation: Federation) -> None:
    federation.exchange()
    other = federation.terms.model_copy(update={"rounds": 99})
    with pytest.raises(MaskingRefused):
        masked_answers.keys(federation.site, encode(KeysRequest(terms=other, round=1, attempt=1)))


@pytest.mark.parametrize(
    ("limit", "what"),
    [({"max_norm": 1e-6}, "norm"), ({"max_support": 0.5}, "above 0.5 patients")],
)
def test_an_update_outside_the_limits_is_never_masked(
    federation: Federation, limit: dict[str, float], what: str
) -> None:
    limits = federation.terms.limits.model_copy(update=limit)
    federation.terms = federation.terms.model_copy(update={"limits": limits})
    site = federation.with_sealed(federation.exchange())
    with pytest.raises(MaskingRefused, match=what):
        site.train(federation.train(federation.masking()))
    known = federation.masker("cleveland").participant.memory.find(federation.masker("cleveland")._place(1, 1))
    assert known is not None and known.phase == "dealt", "nothing was masked"


def test_rows_that_are_held_back_are_fixed_by_the_first_round(federation: Federation) -> None:
    held = {"head.weight": (0,)}
    sealed = federation.exchange()
    federation.with_sealed(sealed).train(federation.train(federation.masking(held=held)))
    sealed = federation.exchange(2, 2)
    for other in ({}, {"head.weight": (0,), "head.bias": (0,)}):
        request = federation.train(federation.masking(attempt=2, held=other), 2)
        with pytest.raises(MaskingRefused, match="other rows are held back"):
            federation.with_sealed(sealed).train(request)
    federation.with_sealed(sealed).train(federation.train(federation.masking(attempt=2, held=held), 2))


@pytest.mark.parametrize("held", [{"no.such": (0,)}, {"head.weight": (7,)}, {"head.weight": (-1,)}])
def test_rows_that_no_tensor_has_are_refused(federation: Federation, held: dict[str, tuple[int, ...]]) -> None:
    sealed = federation.exchange()
    with pytest.raises(MessageError, match="no shared tensor has"):
        federation.with_sealed(sealed).train(federation.train(federation.masking(held=held)))


def test_rows_are_counted_once_before_the_first_round(federation: Federation) -> None:
    sealed = federation.exchange(0)
    request = encode(
        CountRequest(
            terms=federation.terms, table=federation.coordinator.table, masking=federation.masking(), attempt=1
        )
    )
    reply, arrays = decode(masked_answers.count(federation.with_sealed(sealed), request), CountReply)
    assert reply.masked.statement is not None and arrays.keys() == {"masked/vector"}
    sealed = federation.exchange(1, 2)
    federation.with_sealed(sealed).train(federation.train(federation.masking(attempt=2)))
    again = request_for_count(federation, 3)
    with pytest.raises(MaskingRefused, match="rows of this run are fixed"):
        masked_answers.count(federation.site, again)


def request_for_count(federation: Federation, attempt: int) -> bytes:
    masking = federation.masking(attempt=attempt)
    table = federation.coordinator.table
    return encode(CountRequest(terms=federation.terms, table=table, masking=masking, attempt=attempt))


def test_rows_that_the_study_declares_are_neither_counted_nor_held(site: SiteFolder, tmp_path: Path) -> None:
    declared = SecureAggregation(threshold=2, rows="declared")
    federation = Federation(site, tmp_path / "federation", declared)
    with pytest.raises(MaskingRefused, match="lists none"):
        masked_answers.count(federation.site, request_for_count(federation, 1))


def test_unmasking_gives_shares_of_those_who_masked_and_deals_for_the_next_sum(federation: Federation) -> None:
    sealed = federation.exchange()
    request = federation.train(federation.masking())
    reply, _ = decode(federation.with_sealed(sealed).train(request), TrainReply)
    assert reply.masked is not None and reply.masked.statement is not None and reply.masked.keys is not None
    statements, keys = [reply.masked.statement], [reply.masked.keys]
    masker = federation.masker("north")
    vector = np.zeros(8, np.uint64)
    statements.append(masker.participant.mask(masker._place(1, 1), NAMES, {}, digest_of(request), vector))
    keys.append(masker.keys(2, 1))
    facts = {"terms": federation.terms, "round": 1, "attempt": 1}
    unmask = encode(UnmaskRequest(**facts, statements=tuple(statements), keys=tuple(keys)))
    answer = masked_answers.unmask(federation.site, unmask)
    told, _ = decode(answer, UnmaskReply)
    assert told.shares is not None
    assert told.shares.seeds.keys() == {"cleveland", "north"} and told.shares.mask_keys.keys() == {"south"}
    assert told.sealed.keys() == {"north"}
    assert masked_answers.unmask(federation.site, unmask) == answer, "given again, not made again"
    other = encode(UnmaskRequest(**facts, statements=tuple(statements)))
    with pytest.raises(MaskingRefused, match="past that step"):
        masked_answers.unmask(federation.site, other)


def test_secrets_of_a_run_that_was_never_finished_expire(federation: Federation) -> None:
    federation.exchange()
    (file,) = (federation.site.state / federation.terms.run / "masks").glob("*.json")
    assert b'"seed":' in file.read_bytes()
    federation.terms = federation.terms.model_copy(update={"run": "ef" * 16})
    federation.exchange()
    assert b'"seed":' in file.read_bytes()
    os.utime(file, (0, 0))
    federation.exchange(2)
    assert b'"seed":' not in file.read_bytes()


def test_the_finish_sends_scores_under_masks_and_the_bundle_stays(federation: Federation) -> None:
    sealed = federation.exchange(2)
    table, terms = federation.coordinator.table, federation.terms
    request = encode(
        FinishRequest(terms=terms, table=table, round=1, masking=federation.masking()), federation.coordinator.state()
    )
    answer = federation.with_sealed(sealed).finish(request)
    reply, arrays = decode(answer, FinishReply)
    assert reply.masked is not None and reply.masked.keys is None
    assert arrays.keys() == {"masked/vector"}
    assert outline(answer).facts.keys() == {"site", "bundle", "masked"}
    assert list((federation.site.state / terms.run / "bundle").iterdir())
