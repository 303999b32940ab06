"""What a site refuses. Each test names the attack."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flexmoe_core.errors import MaskingRefused
from flexmoe_core.privacy.settings import SecureAggregation
from flexmoe_core.secure_aggregation.keys import Secrets
from flexmoe_core.secure_aggregation.memory import MemoryFolder
from flexmoe_core.secure_aggregation.participant import Participant
from flexmoe_core.secure_aggregation.roster import PinnedRoster
from flexmoe_core.secure_aggregation.streams import Vector
from tests.flexmoe_core.hospital_keys import public_line
from tests.flexmoe_core.secure_aggregation.sites import Sites, make_sites, random_vectors

VICTIM = "site-00"


@pytest.fixture
def sites(tmp_path: Path) -> Sites:
    return make_sites(tmp_path, 4, 3)


@pytest.fixture
def vectors(sites: Sites) -> dict[str, Vector]:
    return random_vectors(sites.participants, 5)


def victim(sites: Sites) -> Participant:
    return sites.participants[VICTIM]


def announced(sites: Sites, **which: int) -> None:
    sites.keys = {name: one.announce(sites.place(**which)) for name, one in sites.participants.items()}


def test_forged_keys(sites: Sites) -> None:
    announced(sites)
    place, stranger = sites.place(), Ed25519PrivateKey.generate()
    forged = Secrets.fresh().announced("site-01", place, stranger)
    with pytest.raises(MaskingRefused, match="did not sign"):
        victim(sites).deal(place, [*(sites.keys | {"site-01": forged}).values()])


@pytest.mark.parametrize("field", ["mask_key", "channel_key", "seed_hash"])
def test_keys_that_were_changed_on_their_way(sites: Sites, field: str) -> None:
    announced(sites)
    changed = sites.keys["site-01"].model_copy(update={field: getattr(sites.keys["site-02"], field)})
    with pytest.raises(MaskingRefused, match="did not sign"):
        victim(sites).deal(sites.place(), (sites.keys | {"site-01": changed}).values())


def test_swapped_keys(sites: Sites) -> None:
    announced(sites)
    swapped = {
        "site-01": sites.keys["site-02"].model_copy(update={"site": "site-01"}),
        "site-02": sites.keys["site-01"].model_copy(update={"site": "site-02"}),
    }
    with pytest.raises(MaskingRefused, match="did not sign"):
        victim(sites).deal(sites.place(), (sites.keys | swapped).values())


@pytest.mark.parametrize(("round_number", "attempt"), [(1, 1), (2, 1), (1, 2)])
def test_replayed_keys(sites: Sites, round_number: int, attempt: int) -> None:
    announced(sites, round_number=round_number, attempt=attempt)
    old = sites.keys["site-01"]
    announced(sites, round_number=3, attempt=2)
    with pytest.raises(MaskingRefused, match="another run, round, attempt"):
        victim(sites).deal(sites.place(3, 2), (sites.keys | {"site-01": old}).values())


def test_keys_of_another_run_roster_or_settings(sites: Sites) -> None:
    announced(sites)
    for change in ({"run": "f" * 32}, {"config": "a" * 64}, {"roster": "a" * 64}):
        other = sites.place().model_copy(update=change)
        with pytest.raises(MaskingRefused):
            victim(sites).deal(other, sites.keys.values())


def test_a_site_that_the_pinned_roster_does_not_have(sites: Sites) -> None:
    announced(sites)
    place, stranger = sites.place(), Ed25519PrivateKey.generate()
    with pytest.raises(MaskingRefused, match="not on the pinned roster"):
        victim(sites).deal(place, [*sites.keys.values(), Secrets.fresh().announced("stranger", place, stranger)])


def test_a_coordinator_with_another_roster(sites: Sites) -> None:
    keys = {**sites.roster.keys, "stranger": public_line(Ed25519PrivateKey.generate())}
    with pytest.raises(MaskingRefused, match="not the one that is pinned"):
        victim(sites).announce(sites.place().model_copy(update={"roster": PinnedRoster(keys).digest}))


def test_a_roster_that_has_another_key_for_this_site(sites: Sites) -> None:
    keys = {**sites.roster.keys, VICTIM: public_line(Ed25519PrivateKey.generate())}
    other = replace(victim(sites), roster=PinnedRoster(keys))
    with pytest.raises(MaskingRefused, match="key of this node"):
        other.announce(sites.place().model_copy(update={"roster": other.roster.digest}))


def test_one_site_with_two_sets_of_keys(sites: Sites) -> None:
    announced(sites)
    with pytest.raises(MaskingRefused, match="two sets"):
        victim(sites).deal(sites.place(), [*sites.keys.values(), sites.keys["site-01"]])


def test_keys_in_place_of_this_sites_own(sites: Sites, tmp_path: Path) -> None:
    announced(sites)
    twin = replace(victim(sites), memory=MemoryFolder(tmp_path / "twin"))
    other = twin.announce(sites.place())
    with pytest.raises(MaskingRefused, match="not those that it announced"):
        victim(sites).deal(sites.place(), (sites.keys | {VICTIM: other}).values())


def test_too_few_keys(sites: Sites) -> None:
    announced(sites)
    with pytest.raises(MaskingRefused, match="2 sites announced keys, 3 are needed"):
        victim(sites).deal(sites.place(), [sites.keys[VICTIM], sites.keys["site-01"]])


def test_shares_dealt_again_to_others(sites: Sites) -> None:
    announced(sites)
    first = victim(sites).deal(sites.place(), sites.keys.values())
    assert victim(sites).deal(sites.place(), sites.keys.values()) == first
    with pytest.raises(MaskingRefused, match="dealt to others"):
        victim(sites).deal(sites.place(), [sites.keys[name] for name in (VICTIM, "site-01", "site-02")])


def test_a_cohort_below_the_threshold_or_with_others_or_without_this_site(
    sites: Sites, vectors: dict[str, Vector]
) -> None:
    sites.exchange(sites.place())
    for cohort, what in (
        ([VICTIM, "site-01"], "3 are needed"),
        ([VICTIM, "site-01", "site-01"], "twice"),
        ([VICTIM, "site-01", "stranger"], "no shares were dealt"),
        (["site-01", "site-02", "site-03"], "not in the cohort"),
    ):
        with pytest.raises(MaskingRefused, match=what):
            victim(sites).mask(sites.place(), cohort, {}, "e" * 64, vectors[VICTIM].copy())


def test_a_cohort_smaller_than_the_hospital_accepts(sites: Sites) -> None:
    careful = replace(victim(sites), least_sum=4)
    with pytest.raises(MaskingRefused, match="sums of 3 honest sites would be possible, 4 are required"):
        careful.announce(sites.place())


@pytest.mark.parametrize(("threshold", "colluding"), [(2, 0), (3, 2), (5, 0)])
def test_a_threshold_that_is_too_low_or_too_high(sites: Sites, threshold: int, colluding: int) -> None:
    settings = SecureAggregation(threshold=threshold, colluding=colluding)
    with pytest.raises(MaskingRefused, match="threshold is"):
        replace(victim(sites), settings=settings).announce(sites.place())


def test_a_second_vector_under_the_same_masks(sites: Sites, vectors: dict[str, Vector]) -> None:
    """The difference of the two would be that of the updates."""
    sites.exchange(sites.place())
    sites.mask(sites.place(), vectors)
    with pytest.raises(MaskingRefused, match="past that step"):
        victim(sites).mask(sites.place(), sites.cohort, sites.shares_for(VICTIM), "d" * 64, vectors[VICTIM])


def test_both_shares_of_one_site(sites: Sites, vectors: dict[str, Vector]) -> None:
    """First site-01 masked, then it dropped out: the coordinator would have its self-mask and its mask key."""
    sites.exchange(sites.place())
    sites.mask(sites.place(), vectors)
    told = victim(sites).unmask(sites.place(), sites.statements.values())
    assert told.seeds.keys() == set(sites.cohort) and not told.mask_keys
    without = [said for name, said in sites.statements.items() if name != "site-01"]
    for again in (without, list(sites.statements.values())):
        with pytest.raises(MaskingRefused, match="past that step"):
            victim(sites).unmask(sites.place(), again)


def test_a_second_unmasking_from_another_process(sites: Sites, vectors: dict[str, Vector], tmp_path: Path) -> None:
    sites.exchange(sites.place())
    sites.mask(sites.place(), vectors)
    victim(sites).unmask(sites.place(), sites.statements.values())
    again = replace(victim(sites), memory=MemoryFolder(tmp_path / VICTIM))
    with pytest.raises(MaskingRefused, match="past that step"):
        again.unmask(sites.place(), sites.statements.values())


def test_the_answer_is_noted_before_it_is_given(
    sites: Sites, vectors: dict[str, Vector], monkeypatch: pytest.MonkeyPatch
) -> None:
    sites.exchange(sites.place())
    sites.mask(sites.place(), vectors)

    def disk_is_full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(MemoryFolder, "keep", disk_is_full)
    with pytest.raises(OSError, match="no space"):
        victim(sites).unmask(sites.place(), sites.statements.values())


def test_survivors_below_the_threshold_named_twice_or_invented(sites: Sites, vectors: dict[str, Vector]) -> None:
    sites.exchange(sites.place())
    sites.mask(sites.place(), vectors)
    said = list(sites.statements.values())
    stranger = said[1].model_copy(update={"site": "stranger"})
    unsigned = said[1].model_copy(update={"site": "site-02"})
    for statements, what in (
        (said[:2], "2 sites masked, 3 are needed"),
        ([*said[:2], said[1]], "one twice"),
        ([*said[:2], stranger], "not on the pinned roster"),
        ([said[0], said[1], unsigned], "did not sign"),
    ):
        with pytest.raises(MaskingRefused, match=what):
            victim(sites).unmask(sites.place(), statements)
    assert victim(sites).unmask(sites.place(), said).seeds


def test_a_survivor_of_another_cohort(sites: Sites, vectors: dict[str, Vector]) -> None:
    """A coordinator that tells site-01 of a smaller cohort cannot have it unmasked by the others."""
    place = sites.place()
    sites.exchange(place)
    smaller = [VICTIM, "site-01", "site-02"]
    other = sites.participants["site-01"].mask(
        place, smaller, sites.shares_for("site-01"), "e" * 64, vectors["site-01"].copy()
    )
    victim(sites).mask(place, sites.cohort, sites.shares_for(VICTIM), "e" * 64, vectors[VICTIM].copy())
    rest = [
        sites.participants[name].mask(place, sites.cohort, sites.shares_for(name), "e" * 64, vectors[name].copy())
        for name in ("site-02", "site-03")
    ]
    with pytest.raises(MaskingRefused, match="another cohort"):
        victim(sites).unmask(place, [other, *rest])


def test_unmasking_without_having_masked(sites: Sites) -> None:
    sites.exchange(sites.place())
    with pytest.raises(MaskingRefused, match="past that step"):
        victim(sites).unmask(sites.place(), [])


def test_a_round_that_was_left_for_a_later_one(sites: Sites, vectors: dict[str, Vector]) -> None:
    for later in (sites.place(2), sites.place(1, 2)):
        assert later.order > sites.place().order
    sites.exchange(sites.place())
    sites.mask(sites.place(), vectors)
    sites.exchange(sites.place(1, 2))
    with pytest.raises(MaskingRefused, match="past that step"):
        victim(sites).unmask(sites.place(), sites.statements.values())
    with pytest.raises(MaskingRefused, match="announced before"):
        victim(sites).announce(sites.place(7, 1))


def secrets_on_disk(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*.json") if b'"seed":' in file.read_bytes()]


def test_secrets_are_for_their_owner_alone_and_are_erased(
    sites: Sites, vectors: dict[str, Vector], tmp_path: Path
) -> None:
    sites.exchange(sites.place())
    sites.mask(sites.place(), vectors)
    found = secrets_on_disk(tmp_path / VICTIM)
    assert found
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in found)
    known = victim(sites).memory.find(sites.place())
    assert known is not None and known.secrets is not None
    for text in (repr(known), repr(known.secrets), str(known.shares)):
        assert known.secrets.seed not in text and known.secrets.mask_key not in text
    victim(sites).unmask(sites.place(), sites.statements.values())
    assert not secrets_on_disk(tmp_path / VICTIM)
    sites.exchange(sites.place(2))
    assert secrets_on_disk(tmp_path / VICTIM)
    victim(sites).forget()
    assert not secrets_on_disk(tmp_path / VICTIM)


def test_a_file_that_was_cut_short(sites: Sites, vectors: dict[str, Vector], tmp_path: Path) -> None:
    sites.exchange(sites.place())
    (file,) = secrets_on_disk(tmp_path / VICTIM)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(MaskingRefused, match="cut short"):
        victim(sites).mask(sites.place(), sites.cohort, {}, "e" * 64, vectors[VICTIM])


def test_shares_for_one_site_are_of_no_use_to_another(sites: Sites, vectors: dict[str, Vector]) -> None:
    place = sites.place()
    sites.exchange(place)
    for name in sites.cohort:
        sealed = {sender: next(iter(sites.sealed[sender].values())) for sender in sites.cohort if sender != name}
        right = {sender: sites.sealed[sender].get(name) for sender in sealed}
        said = sites.participants[name].mask(place, sites.cohort, sealed, "e" * 64, vectors[name].copy())
        sites.statements[name] = said
        known = sites.participants[name].memory.find(place)
        assert known is not None
        assert set(known.shares) == {name} | {one for one in sealed if sealed[one] == right[one]}


def test_a_key_with_which_there_is_no_secret(sites: Sites) -> None:
    from flexmoe_core.secure_aggregation.keys import agreed  # noqa: PLC0415

    with pytest.raises(MaskingRefused, match="no secret"):
        agreed(Secrets.fresh().mask_key, "00" * 32)
    assert np.size(sites.cohort) == 0
