"""The chance inside the model under patient-level privacy: dropout, gate noise and hiding from the secret source.

Shapes: B patients, W words of a patient, M modalities.
"""

from __future__ import annotations

from torch import Tensor

from flexmoe_core.chance import PatientChance
from flexmoe_core.privacy.secret_source import SecretSource


class SecretChance:
    """Fresh bits of the secret source for every patient.

    The guarantee needs each patient's gradient to be a function of his own record and of draws that are independent
    of who else is there. Then two batches that differ in one patient can be coupled so that the others draw the same,
    and their sums differ by one clipped gradient. Fresh uniform bits for every place in the batch do that: they have
    the same distribution whichever patient comes to sit there. A seeded generator would not: given its seed, a
    patient who joins would shift the draws, and so the gradients, of all who come after him. (torch's CPU generator
    has 2^32 seeds, too few to hide behind.) Nothing is asked of these draws beyond independence; what protects
    patients is the noise alone.
    """

    def __init__(self, source: SecretSource, patients: int) -> None:
        self.patients, self._source = patients, source

    def words(self, count: int) -> Tensor:
        """(B, W) of fresh bits."""
        return self._source.bits(self.patients * count).reshape(self.patients, count)


def uniform_lots(chance: PatientChance, modalities: int) -> Tensor:
    """Float64 (B, M) in [0, 1), a number for each patient and modality."""
    # The highest 53 bits, shifted from [-2^52, 2^52) to [0, 1).
    return ((chance.words(modalities) >> 11) + 2**52).double() * 2.0**-53
