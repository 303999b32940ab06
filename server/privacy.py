"""What a run's protections cost and ask for, as the coordinator knows it: from settings and declared facts alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from flexmoe_core.messages import HandshakeReply, Terms
from flexmoe_core.privacy.accounting import epsilon_of
from flexmoe_core.privacy.calibration import mechanism_for, release_event
from flexmoe_core.privacy.events import PatientMechanism, PrivacyEvent
from server.site_privacy import SiteLevelNoise


def mechanisms(terms: Terms, replies: Mapping[str, HandshakeReply]) -> dict[str, PatientMechanism]:
    """Each site's mechanism of a round under patient-level privacy; empty without."""
    privacy = terms.privacy.patient
    if privacy is None:
        return {}
    sizes = {site: reply.declared_patients or 1 for site, reply in replies.items()}
    found = {size: mechanism_for(privacy, terms.method.training, terms.rounds, size) for size in set(sizes.values())}
    least = least_noise(terms, found.values())
    return {
        site: found[size].model_copy(update={"noise_multiplier": max(least, found[size].noise_multiplier)})
        for site, size in sizes.items()
    }


def least_noise(terms: Terms, found: Iterable[PatientMechanism]) -> float:
    """The noise multiplier below which no site may stay: of the site that needs most where noise is uniform."""
    privacy = terms.privacy.patient
    if privacy is None or privacy.noise == "site":
        return 0.0
    return max((mechanism.noise_multiplier for mechanism in found), default=0.0)


def privacy_facts(
    terms: Terms,
    found: Mapping[str, PatientMechanism],
    answered: Iterable[str],
    finished: Iterable[str],
    site_level: SiteLevelNoise | None,
    aggregated: int,
) -> dict[str, Any]:
    """What metrics.json says of privacy. ``answered`` names a site once for each round that it answered.

    A site's ledger may hold more: rounds that it computed and whose answer was lost. It is the authority.
    """
    facts: dict[str, Any] = {}
    patient, site = terms.privacy.patient, terms.privacy.site
    if patient is not None:
        rounds, released = Counter(answered), release_event(patient) if finished else None
        finished = set(finished)
        epsilons = {}
        for name, mechanism in sorted(found.items()):
            events: list[PrivacyEvent] = [mechanism.event] * rounds[name]
            if released is not None and name in finished:
                events.append(released)
            epsilons[name] = round(epsilon_of(events, patient.delta), 4)
        facts["patient"] = {
            "epsilon": patient.epsilon,
            "delta": patient.delta,
            "noise_multiplier": {name: one.noise_multiplier for name, one in sorted(found.items())},
            "sampling_rate": {name: one.sampling_rate for name, one in sorted(found.items())},
            "spent": epsilons,
        }
    if site is not None and site_level is not None:
        facts["site"] = {
            "epsilon": site.epsilon,
            "delta": site.delta,
            "noise_multiplier": site_level.noise_multiplier,
            "spent": round(site_level.spent(aggregated), 4),
            "covers": "the models of all rounds; not the metrics",
        }
    return facts
