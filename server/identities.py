"""Whose answer an answer is: every site signs with the identity key that the roster has for it."""

from __future__ import annotations

from dataclasses import replace

from flexmoe_core.attachments import Attachments
from flexmoe_core.enrollment import Roster
from flexmoe_core.signatures import Digest, Statement, digest_of
from server.conversation import Answers
from server.record import Question


class Identities:
    """Checks signatures against a run's roster; without one, as in simulations, nobody has to sign.

    Flower lets any node that knows a message's number answer it, and knows nodes by a key of another kind.
    """

    def __init__(self, roster: Roster | None) -> None:
        self._keys = None if roster is None else {site: member.identity_key for site, member in roster.active.items()}

    @property
    def known(self) -> bool:
        """Whether there is a roster, whose names are also those of Flower's nodes."""
        return self._keys is not None

    def objection(
        self, question: Question, request: Digest, site: str, payload: bytes, beside: Attachments
    ) -> str | None:
        """Why an answer that claims to be of a site is not to be believed, or None."""
        if self._keys is None:
            return None
        if site not in self._keys:
            return "is not on the roster"
        said = Statement(site, question, request, digest_of(payload), beside.record)
        if not said.is_signed(beside.signature, self._keys[site]):
            return "did not sign this answer"
        return None

    def checked(self, question: Question, request: bytes, answers: Answers) -> Answers:
        """The answers, by the sites that were asked; whoever did not sign its own has failed."""
        if not self.known:
            return answers
        asked = digest_of(request)
        objections = {
            site: objection
            for site, payload in answers.payloads.items()
            if (objection := self.objection(question, asked, site, payload, answers.beside[site]))
        }
        return replace(
            answers,
            payloads={site: payload for site, payload in answers.payloads.items() if site not in objections},
            failed=answers.failed | {site: f"{site} {why}" for site, why in objections.items()},
        )
