"""What a run's protections cost and ask for, as the coordinator knows it: from settings and declared facts alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from flexmoe_core.messages import HandshakeReply, Terms
from flexmoe_core.privacy.accounting import epsilon_of
from flexmoe_core.privacy.calibration import mechanism_for, release_event
from flexmoe_core.privacy.events import PatientMechanism, PrivacyEvent
from flexmoe_core.privacy.settings import PatientPrivacy
from server.site_privacy import SiteLevelNoise


def mechanisms(terms: Terms, replies: Mapping[str, HandshakeReply]) -> dict[str, PatientMechanism]:
    """Each site's mechanism of a round under patient-level privacy; empty without."""
    privacy = terms.privacy.patient
    if privacy is None:
        return {}
    sizes = {site: reply.declared_patients or 1 for site, reply in replies.items()}
    found = {size: mechanism_for(privacy, terms.method.training, terms.rounds, size) for size in set(sizes.values())}
    most = max((mechanism.noise_multiplier for mechanism in found.values()), default=0.0)
    if privacy.noise == "uniform":
        found = {size: one.model_copy(update={"noise_multiplier": most}) for size, one in found.items()}
    return {site: found[size] for site, size in sizes.items()}


def release_noise(terms: Terms) -> float | None:
    """The noise multiplier of the final metrics under patient-level privacy; None where they stay at the sites."""
    event = None if terms.privacy.patient is None else release_event(terms.privacy.patient)
    return None if event is None else event.noise_multiplier


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
        facts["patient"] = {
            "epsilon": patient.epsilon,
            "delta": patient.delta,
            "noise_multiplier": {name: one.noise_multiplier for name, one in sorted(found.items())},
            "sampling_rate": {name: one.sampling_rate for name, one in sorted(found.items())},
            "spent": _spent(patient, found, Counter(answered), set(finished)),
        }
    if site is not None and site_level is not None:
        facts["site"] = {
            "epsilon": site.epsilon,
            "delta": site.delta,
            "noise_multiplier": site_level.noise_multiplier,
            "spent": round(site_level.spent(aggregated), 4),
            "covers": "the models of all rounds; not the metrics",
        }
    masks = terms.privacy.secure_aggregation
    if masks is not None:
        facts["secure_aggregation"] = {"threshold": masks.threshold, "colluding": masks.colluding}
    return facts


def _spent(
    patient: PatientPrivacy, found: Mapping[str, PatientMechanism], rounds: Counter[str], finished: Collection[str]
) -> dict[str, float]:
    """Epsilon of what each site has answered."""
    released = release_event(patient)
    spent = {}
    for name, mechanism in sorted(found.items()):
        events: list[PrivacyEvent] = [mechanism.event] * rounds[name]
        if released is not None and name in finished:
            events.append(released)
        spent[name] = round(epsilon_of(events, patient.delta), 4)
    return spent
