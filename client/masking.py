"""A site's part in the masked sums of one run: what it has pinned, and its vector of each sum."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.state import RunState
from flexmoe_core.checkpoint import write_atomic
from flexmoe_core.door import validate_reply
from flexmoe_core.errors import MaskingRefused, MessageError
from flexmoe_core.masked_messages import UnmaskRequest, place_of
from flexmoe_core.messages import Masked, Masking, Terms
from flexmoe_core.privacy.secret_source import SecretSource
from flexmoe_core.privacy.site_clipping import noise_share, with_noise
from flexmoe_core.scores import Scores
from flexmoe_core.secure_aggregation.keys import Place, PublicKeys
from flexmoe_core.secure_aggregation.memory import MemoryFolder
from flexmoe_core.secure_aggregation.participant import Participant, UnmaskingShares
from flexmoe_core.secure_aggregation.roster import PinnedRoster
from flexmoe_core.secure_aggregation.score_blocks import codes_of_scores, score_blocks
from flexmoe_core.secure_aggregation.vector import Layout, codes_of_update, layout_of_update
from flexmoe_core.signatures import digest_of, read_identity_key
from flexmoe_core.update import TensorSpec, Update

SECRETS_FOLDER = "masks"
LIFETIME_S = 7 * 24 * 3600.0
"""After which the secrets of a run that was never finished are erased."""
HELD_FILE = "held_rows.json"
VECTOR = "masked/vector"


@dataclass(frozen=True)
class Membership:
    """By which other sites know this one: its identity key, and the roster that its engineer pinned; both as files.

    ``least_sum`` is the smallest number of honest sites that may stand behind a sum.
    """

    identity: Path | None = None
    roster: Path | None = None
    least_sum: int = 2


@dataclass(frozen=True)
class MaskedVector:
    """What leaves of a masked sum: a vector that is uniform to everybody but the cohort together, and a statement."""

    masked: Masked
    arrays: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Masker:
    """One run's sums. ``sealed`` are the shares that came beside the message, by sender."""

    participant: Participant
    terms: Terms
    folder: Path
    sealed: Mapping[str, bytes]

    def keys(self, round_number: int, attempt: int) -> PublicKeys:
        """Keys for a sum."""
        return self.participant.announce(self._place(round_number, attempt))

    def shares(self, round_number: int, attempt: int, keys: Iterable[PublicKeys]) -> dict[str, str]:
        """Shares for those who announced keys for a sum, sealed, in hexadecimal."""
        dealt = self.participant.deal(self._place(round_number, attempt), keys)
        return {name: sealed.hex() for name, sealed in dealt.items()}

    def joins(self, masking: Masking, round_number: int) -> bool:
        """Whether this site is in a sum; raises MaskingRefused where the sum protects too little."""
        if self.participant.site not in masking.cohort:
            return False
        self.participant.require_cohort(self._place(round_number, masking.attempt), masking.cohort)
        return True

    def require_held(self, held: Mapping[str, tuple[int, ...]]) -> None:
        """Pin the rows that are held back, or compare with those that are pinned."""
        file, text = self.folder / HELD_FILE, json.dumps({name: list(held[name]) for name in sorted(held)})
        if self._declared and held:
            raise MaskingRefused("rows follow from the study, and none of them is held back")
        if not file.exists():
            write_atomic(file, text.encode())
        elif file.read_text() != text:
            raise MaskingRefused("other rows are held back than before in this run")

    def require_uncounted(self) -> None:
        """Raise MaskingRefused once rows have been fixed, or where the study fixes them."""
        if self._declared:
            raise MaskingRefused("rows follow from the study, and are not counted")
        if (self.folder / HELD_FILE).exists():
            raise MaskingRefused("the rows of this run are fixed")

    def masked(
        self,
        masking: Masking,
        round_number: int,
        request: bytes,
        layout: Layout,
        codes: Mapping[str, np.ndarray],
        next_round: int | None,
    ) -> MaskedVector:
        """The site's statement and its masked vector, and keys for the next sum."""
        vector_V = layout.encode(codes)
        place = self._place(round_number, masking.attempt)
        statement = self.participant.mask(place, masking.cohort, self.sealed, digest_of(request), vector_V)
        keys = None if next_round is None else self.keys(next_round, masking.attempt)
        return MaskedVector(Masked(statement=statement, keys=keys), {VECTOR: vector_V})

    def absent(self, masking: Masking, next_round: int | None) -> MaskedVector:
        """What a site says that is not in the cohort."""
        keys = None if next_round is None else self.keys(next_round, masking.attempt)
        return MaskedVector(Masked(statement=None, keys=keys), {})

    def update_vector(
        self,
        update: Update,
        specs: tuple[TensorSpec, ...],
        masking: Masking,
        validation: Scores | None,
        source: SecretSource,
    ) -> tuple[Layout, dict[str, np.ndarray]]:
        """Layout and codes of a training round.

        Raises MaskingRefused for an update that the coordinator's door would refuse if it could see it.
        """
        problems = validate_reply(update, specs, self.terms.limits)
        if problems:
            raise MaskingRefused("this site's update may not be summed: " + "; ".join(problems))
        released = {spec.name: np.ones(spec.rows, bool) for spec in specs}
        for name, rows in masking.held.items():
            if name not in released or not all(0 <= row < len(released[name]) for row in rows):
                raise MessageError("rows are held back that no shared tensor has")
            released[name][list(rows)] = False
        codes = codes_of_update(self._noised(update, source), specs, released) | self.score_codes(
            {"validation": validation}
        )
        return layout_of_update(specs, score_blocks(["validation"], self._classes)), codes

    def _noised(self, update: Update, source: SecretSource) -> Update:
        """With this site's share of noise, where the run has site-level privacy."""
        privacy = self.terms.privacy
        if privacy.site is None:
            return update
        sites = len(self.participant.roster.keys)
        return with_noise(
            update, noise_share(privacy.site, self.terms.rounds, self.participant.settings, sites), source
        )

    def score_codes(self, splits: Mapping[str, Scores | None]) -> dict[str, np.ndarray]:
        """Codes of the scores of some splits, where there are any."""
        sites = len(self.participant.roster.keys)
        return {
            name: code
            for split, scores in splits.items()
            if scores is not None
            for name, code in codes_of_scores(split, scores, sites).items()
        }

    def score_layout(self, splits: Iterable[str]) -> Layout:
        """The layout of a sum of scores alone."""
        return Layout(score_blocks(splits, self._classes))

    def unmask(self, request: UnmaskRequest) -> tuple[UnmaskingShares | None, dict[str, str]]:
        """Shares for this sum, if the site masked, and for the next one, if it announced keys.

        The second come first: whoever refuses those has given nothing.
        """
        sealed: dict[str, str] = {}
        if any(one.site == self.participant.site for one in request.keys):
            sealed = self.shares(request.round + 1, request.attempt, request.keys)
        place = self._place(request.round, request.attempt)
        return (self.participant.unmask(place, request.statements) if self._took_part(place) else None), sealed

    def forget(self) -> None:
        """Erase all secrets."""
        self.participant.forget()

    def _took_part(self, place: Place) -> bool:
        known = self.participant.memory.find(place)
        return known is not None and known.phase in ("masked", "over")

    def _place(self, round_number: int, attempt: int) -> Place:
        return place_of(self.terms, round_number, attempt, self.participant.roster)

    @property
    def _declared(self) -> bool:
        return self.participant.settings.rows == "declared"

    @property
    def _classes(self) -> int:
        return len(self.terms.study.label.classes)


@dataclass(frozen=True)
class MaskedRequest:
    """A request whose answer is masked."""

    masker: Masker
    masking: Masking
    round: int
    request: bytes

    @property
    def joins(self) -> bool:
        """Whether the site is in this sum; raises MaskingRefused where the sum protects too little."""
        return self.masker.joins(self.masking, self.round)

    def update(
        self, update: Update, specs: tuple[TensorSpec, ...], source: SecretSource, validation: Scores | None = None
    ) -> MaskedVector:
        """An update, and the scores of what came in. Raises MaskingRefused.

        ``source`` gives this site's share of the noise of site-level privacy, which nobody could add to a sum later.
        """
        layout, codes = self.masker.update_vector(update, specs, self.masking, validation, source)
        return self.masker.masked(self.masking, self.round, self.request, layout, codes, self.round + 1)

    def scores(self, splits: Mapping[str, Scores | None]) -> MaskedVector:
        """The scores of some splits, the last sum of a run. Raises MaskingRefused."""
        if not self.joins:
            return self.masker.absent(self.masking, None)
        layout, codes = self.masker.score_layout(splits), self.masker.score_codes(splits)
        return self.masker.masked(self.masking, self.round, self.request, layout, codes, None)

    def require_held(self) -> None:
        """Raise MaskingRefused where other rows are held back than before in this run."""
        self.masker.require_held(self.masking.held)

    def absent(self) -> MaskedVector:
        """Keys alone, to be in the next sum."""
        return self.masker.absent(self.masking, self.round + 1)


def masker_for(
    site: str, memory: RunState, terms: Terms, membership: Membership, sealed: Mapping[str, bytes]
) -> Masker | None:
    """The masks of a run whose terms ask for them; None where they do not.

    Raises MaskingRefused for a run that masked before and would not now, and for a site without key or roster.
    """
    folder, settings = memory.folder / SECRETS_FOLDER, terms.privacy.secure_aggregation
    if settings is None:
        if folder.exists():
            raise MaskingRefused("this run has masked its sums, and would not any more")
        return None
    if membership.identity is None or membership.roster is None or not membership.roster.exists():
        raise MaskingRefused("no roster is pinned here, or there is no identity key: see 'flexmoe-client roster'")
    if settings.rows == "declared" and not terms.study.combinations:
        raise MaskingRefused("rows are to follow from the study's combinations, and study.toml lists none")
    participant = Participant(
        site=site,
        identity=read_identity_key(membership.identity),
        roster=PinnedRoster.read(membership.roster),
        settings=settings,
        memory=MemoryFolder(folder),
        least_sum=membership.least_sum,
    )
    participant.require_sound()
    for left in memory.folder.parent.glob(f"*/{SECRETS_FOLDER}"):
        MemoryFolder(left).erase_older(LIFETIME_S)
    folder.mkdir(exist_ok=True, mode=0o700)
    return Masker(participant, terms, memory.folder, sealed)
