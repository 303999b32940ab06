"""How much noise a run's guarantee needs at a site: computed from public facts, the same wherever it is computed."""

from __future__ import annotations

from flexmoe_core.privacy.accounting import noise_multiplier_for
from flexmoe_core.privacy.events import Gaussian, PatientMechanism, public_schedule
from flexmoe_core.privacy.settings import PatientPrivacy, SitePrivacy
from flexmoe_core.settings import TrainingSettings


def mechanism_of(
    privacy: PatientPrivacy, training: TrainingSettings, declared_patients: int, noise_multiplier: float
) -> PatientMechanism:
    """The mechanism of a round at a site of so many declared patients, with that noise."""
    rate, steps = public_schedule(declared_patients, training.batch_size, training.epochs)
    return PatientMechanism(
        sampling_rate=rate,
        steps=steps,
        clip=privacy.clip,
        noise_multiplier=noise_multiplier,
        expected_batch=rate * declared_patients,
    )


def mechanism_for(
    privacy: PatientPrivacy, training: TrainingSettings, rounds: int, declared_patients: int
) -> PatientMechanism:
    """The mechanism with the least noise that the guarantee needs.

    All rounds, the spare ones and the release of metrics together stay within it.
    """
    rate, steps = public_schedule(declared_patients, training.batch_size, training.epochs)
    released = release_event(privacy)
    others = [] if released is None else [released.model_copy(update={"steps": _releases(privacy)})]
    total = steps * (rounds + privacy.spare_rounds)
    needed = noise_multiplier_for(privacy.epsilon, privacy.delta, rate, total, others)
    return mechanism_of(privacy, training, declared_patients, needed)


def release_event(privacy: PatientPrivacy) -> Gaussian | None:
    """What the one release of metrics at the finish costs; None where none are released."""
    if not privacy.release_share:
        return None
    own = privacy.release_share * privacy.epsilon
    return Gaussian(noise_multiplier=noise_multiplier_for(own, privacy.delta, 1.0, _releases(privacy)))


def _releases(privacy: PatientPrivacy) -> int:
    """How often metrics may be released: once more where anything may be computed again."""
    return 1 + min(privacy.spare_rounds, 1)


def site_noise_multiplier(privacy: SitePrivacy, rounds: int) -> float:
    """Noise of a round's sum under site-level privacy, in which every site takes part."""
    return noise_multiplier_for(privacy.epsilon, privacy.delta, 1.0, rounds)
