"""What a hospital answers to the coordinator's three requests. No Flower here: bytes in, bytes out.

Without patient-level privacy an answer depends on the request, the site's files and the local parameters of the round
before, and on nothing else: answering twice gives the same bytes. With it, noise is drawn and paid for once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from client import open_answers, private_answers
from client.cache import load_site
from client.egress import Outgoing, answer_again, answer_masked_round
from client.entries import read_site_manifest
from client.manifest import read_manifest
from client.masking import MaskedRequest, Masker, Membership, masker_for
from client.policy import Policy, check_policy, read_policy
from client.protection import LedgerAccess, Protection
from client.site_data import SiteData
from client.state import RunState
from flexmoe_core.audit_facts import bundle_of
from flexmoe_core.messages import FinishRequest, HandshakeRequest, Terms, TrainRequest, decode
from flexmoe_core.privacy.secret_source import OperatingSystemSource, SecretSource


@dataclass(frozen=True)
class Site:
    """One hospital: the folder with its site.toml, the folder for its state, and the device it computes on.

    ``membership`` is by what other sites know it, and ``sealed`` what they sealed for it beside this message.
    ``source`` gives its secret randomness, and with ``creates_ledger`` (in simulations alone) its privacy ledger
    begins by itself.
    """

    folder: Path
    state: Path
    device: torch.device
    membership: Membership = field(default_factory=Membership)
    sealed: Mapping[str, bytes] = field(default_factory=dict)
    creates_ledger: bool = False
    source: SecretSource = field(default_factory=OperatingSystemSource)

    @property
    def name(self) -> str:
        """As its site.toml has it. Raises InputError."""
        return read_manifest(self.folder).site.name

    def handshake(self, request_bytes: bytes) -> Outgoing:
        """Announce what the site has, or only what it has declared."""
        request, _ = decode(request_bytes, HandshakeRequest)
        self._admit(request.terms)
        if request.terms.privacy.patient is not None:
            return private_answers.announce(read_site_manifest(self.folder, request.terms.study))
        return open_answers.announce(self.read(request.terms, open_answers.ANNOUNCED_SPLITS), request.terms)

    def train(self, request_bytes: bytes) -> Outgoing:
        """Train the incoming state for a round, and answer the update."""
        request, state = decode(request_bytes, TrainRequest)
        policy, memory = self._admit(request.terms), RunState(self.state, request.terms.run)
        known = memory.answer_to(request_bytes)
        if known is not None:
            return answer_again(known)
        masks = self._masks(request, request.round, request_bytes)
        if masks is not None:
            if not masks.joins:
                return answer_masked_round(self.name, request, masks.absent(), None)
            masks.require_held()
        protection = self._protection(request, request_bytes, policy)
        if protection is None:
            data = self.read(request.terms, open_answers.TRAINING_SPLITS)
            answer = open_answers.train(data, request, state, memory, self.device, masks, self.source)
        else:
            data = self.read(request.terms, private_answers.TRAINING_SPLITS)
            answer = private_answers.train(data, request, state, memory, self.device, masks, protection)
        memory.store_answer(request_bytes, answer)
        return answer

    def finish(self, request_bytes: bytes) -> Outgoing:
        """Score the final state, and write the bundle."""
        request, state = decode(request_bytes, FinishRequest)
        policy, memory = self._admit(request.terms), RunState(self.state, request.terms.run)
        known = memory.answer_to(request_bytes)
        if known is not None:
            return answer_again(known)
        masks = self._masks(request, request.round + 1, request_bytes)
        protection = self._protection(request, request_bytes, policy)
        if protection is None:
            data = self.read(request.terms, open_answers.FINAL_SPLITS)
            answer = open_answers.finish(data, request, state, memory, self.device, masks)
        else:
            data = self.read(request.terms, private_answers.FINAL_SPLITS)
            answer = private_answers.finish(data, request, state, memory, self.device, protection)
            if (masker := self.masker(request.terms)) is not None:
                masker.forget()
        memory.store_answer(request_bytes, answer)
        return answer

    def masker(self, terms: Terms) -> Masker | None:
        """The site's part in masked sums, where the run's terms have any. Raises MaskingRefused, PolicyRefusal."""
        demands = self._admit(terms).secure_aggregation
        membership = self.membership
        if demands is not None:
            membership = replace(membership, least_sum=max(membership.least_sum, demands.min_cohort))
        return masker_for(self.name, RunState(self.state, terms.run), terms, membership, self.sealed)

    def read(self, terms: Terms, splits: Collection[str]) -> SiteData:
        """The patients of some splits. Raises InputError."""
        fitting = terms.privacy.patient is None
        return load_site(self.folder, terms.study, splits, self.state / "cache", fitting=fitting)

    def _admit(self, terms: Terms) -> Policy:
        """What the site demands, before a patient is read. Raises PolicyRefusal for a run that it does not allow."""
        policy = read_policy(self.folder)
        if policy is None:
            return Policy()
        check_policy(policy, terms, self.source.secret, bundle_of())
        return policy

    def _masks(
        self, request: TrainRequest | FinishRequest, round_number: int, request_bytes: bytes
    ) -> MaskedRequest | None:
        masker = self.masker(request.terms)
        if masker is None or request.masking is None:
            return None
        return MaskedRequest(masker, request.masking, round_number, request_bytes)

    def _protection(
        self, request: TrainRequest | FinishRequest, request_bytes: bytes, policy: Policy
    ) -> Protection | None:
        ledger = LedgerAccess(self.state, self.membership.identity, self.creates_ledger)
        return Protection.of(request, request_bytes, ledger, policy, self.source)
