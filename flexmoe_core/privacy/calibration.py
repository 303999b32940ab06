"""How much noise a run's guarantee needs at a site: computed from public facts, the same wherever it is computed."""

from __future__ import annotations

from flexmoe_core.privacy.accounting import noise_multiplier_for
from flexmoe_core.privacy.events import Gaussian, PatientMechanism, public_schedule
from flexmoe_core.privacy.settings import PatientPrivacy
from flexmoe_core.settings import TrainingSettings


def mechanism_for(
    privacy: PatientPrivacy, training: TrainingSettings, rounds: int, declared_patients: int, least_noise: float = 0.0
) -> PatientMechanism:
    """The mechanism of each of a run's rounds at a site of so many declared patients.

    All rounds, the spare ones and the release of metrics together stay within the guarantee. ``least_noise`` is the
    noise multiplier below which the coordinator wants none of its sites; it can only add noise.
    """
    rate, steps = public_schedule(declared_patients, training.batch_size, training.epochs)
    released = release_event(privacy)
    others = [] if released is None else [released.model_copy(update={"steps": _releases(privacy)})]
    total = steps * (rounds + privacy.spare_rounds)
    needed = noise_multiplier_for(privacy.epsilon, privacy.delta, rate, total, others)
    return PatientMechanism(
        sampling_rate=rate,
        steps=steps,
        clip=privacy.clip,
        noise_multiplier=max(needed, least_noise),
        expected_batch=rate * declared_patients,
    )


def release_event(privacy: PatientPrivacy) -> Gaussian | None:
    """What the one release of metrics at the finish costs; None where none are released."""
    if not privacy.release_share:
        return None
    own = privacy.release_share * privacy.epsilon
    return Gaussian(noise_multiplier=noise_multiplier_for(own, privacy.delta, 1.0, _releases(privacy)))


def _releases(privacy: PatientPrivacy) -> int:
    """How often metrics may be released: once more where anything may be computed again."""
    return 1 + min(privacy.spare_rounds, 1)
