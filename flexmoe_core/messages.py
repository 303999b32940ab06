"""What coordinator and hospital say to each other: facts as JSON and arrays as safetensors, in one string of bytes
that begins with its own SHA-256.

Bytes rather than objects: a request's hash then names it, an answer can be stored and given again, and nothing that
arrives is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
import safetensors.numpy
from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, model_validator
from safetensors import SafetensorError

from flexmoe_core.combinations import CombinationTable
from flexmoe_core.door import UpdateLimits
from flexmoe_core.errors import MessageError
from flexmoe_core.groups import Group
from flexmoe_core.privacy.rules import findings_of_method
from flexmoe_core.privacy.settings import PrivacySettings
from flexmoe_core.secure_aggregation.keys import MaskedStatement, PublicKeys
from flexmoe_core.settings import MethodSettings
from flexmoe_core.study import Study
from flexmoe_core.update import MAGNITUDE_BITS
from flexmoe_core.validation import FrozenModel, SafeName, raise_if_any

RunName = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Patients = Annotated[int, Field(ge=1, le=2**MAGNITUDE_BITS)]
NoiseMultiplier = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Arrays = Mapping[str, np.ndarray]
Message = TypeVar("Message", bound=FrozenModel)

DIGEST_BYTES = 32
_FACTS = "facts"


def _table(value: object) -> CombinationTable:
    if isinstance(value, CombinationTable):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("a combination table is a JSON object")
    try:
        return CombinationTable.from_json(value)
    except (KeyError, TypeError) as error:
        raise ValueError(str(error)) from error


Table = Annotated[
    CombinationTable, BeforeValidator(_table), PlainSerializer(lambda table: table.to_json(), return_type=dict)
]


class Terms(FrozenModel):
    """What holds for a whole run: every request repeats it, so that a site needs no memory to answer."""

    run: RunName
    seed: int
    study: Study
    method: MethodSettings
    local_groups: tuple[Group, ...] = ()
    min_cell: int = Field(ge=1)
    rounds: int = Field(ge=1)
    privacy: PrivacySettings = PrivacySettings()
    limits: UpdateLimits = UpdateLimits()

    @model_validator(mode="after")
    def _private(self) -> Self:
        raise_if_any(findings_of_method(self.method, self.privacy))
        return self


class HandshakeRequest(FrozenModel):
    """Who are you, and which combinations may you announce?"""

    terms: Terms


class HandshakeReply(FrozenModel):
    """Declared facts, and training patients per combination and modality where there are at least ``min_cell``."""

    site: SafeName
    declared_patients: int | None
    declared_full_modality: bool | None
    modalities: tuple[SafeName, ...]
    patients: dict[Literal["train", "validation"], Patients]
    announced: dict[int, Patients]
    observed: dict[SafeName, Patients]


class Masking(FrozenModel):
    """A sum that is taken of masked vectors: of ``cohort``, whose keys and shares are in place for this attempt.

    ``held`` are the rows, by tensor, that may not be released and are zero in every vector. The shares that others
    dealt to a site travel beside its message.
    """

    attempt: int = Field(ge=1)
    cohort: tuple[SafeName, ...]
    held: dict[str, tuple[int, ...]] = Field(default={})


class Masked(FrozenModel):
    """What comes with a masked vector, the array ``masked/vector``: the site's statement, and keys for the next sum.

    A site that is not in the cohort sends keys alone.
    """

    statement: MaskedStatement | None
    keys: PublicKeys | None


class _MaskedOrPlain(FrozenModel):
    terms: Terms
    masking: Masking | None = None

    @property
    def is_masked(self) -> bool:
        """Whether the run's terms want masks here."""
        return self.terms.privacy.secure_aggregation is not None

    @model_validator(mode="after")
    def _as_agreed(self) -> Self:
        if (self.masking is not None) != self.is_masked:
            raise ValueError("masks are used where the run's terms say so, and nowhere else")
        return self


class TrainRequest(_MaskedOrPlain):
    """Score the global state on validation patients, then train it for one round. Arrays: the shared parameters.

    Under patient-level privacy nothing is scored, and each site adds noise of its own multiplier. The coordinator
    computes these from declared facts; what a site has promised its patients, its own ledger holds.
    """

    table: Table
    round: int = Field(ge=1)
    attempt: int = Field(default=1, ge=1)
    noise_multipliers: dict[SafeName, NoiseMultiplier] = Field(default_factory=dict)


class TrainReply(FrozenModel):
    """Arrays: ``weighted/*`` and ``support/*`` (the update), ``validation/<cell>/*`` (scores of what came in).

    Under patient-level privacy the update alone. Where ``masked`` is given, update and scores are in its vector, and
    no loss is told.
    """

    site: str
    round: int
    attempt: int
    loss: float | None = None
    seconds: float | None = None
    masked: Masked | None = None


class FinishRequest(_MaskedOrPlain):
    """Score the final state once on validation and test patients, and keep it. Arrays: the shared parameters.

    Under patient-level privacy scores are released with noise of that multiplier, or not where there is none; that
    needs no masks.
    """

    table: Table
    round: int = Field(ge=0)
    release_noise: NoiseMultiplier | None = None

    @property
    def is_masked(self) -> bool:
        """Whether scores are summed under masks."""
        return super().is_masked and self.terms.privacy.patient is None


class FinishReply(FrozenModel):
    """Arrays: ``validation/<cell>/*`` and ``test/<cell>/*``. ``bundle`` is the SHA-256 of the site's bundle.

    Under patient-level privacy: ``released/<split>/*``, noised counts, or nothing. Where ``masked`` is given, the
    scores are in its vector.
    """

    site: str
    bundle: Digest | None = None
    masked: Masked | None = None


def encode(message: FrozenModel, arrays: Arrays | None = None) -> bytes:
    """One message as bytes; equal messages give equal bytes."""
    facts = json.dumps({type(message).__name__: message.model_dump(mode="json")}, sort_keys=True)
    contiguous = {name: np.asarray(value, order="C") for name, value in sorted((arrays or {}).items())}
    body: bytes = safetensors.numpy.save(contiguous, metadata={_FACTS: facts})
    return hashlib.sha256(body).digest() + body


def decode(data: bytes, expected: type[Message]) -> tuple[Message, dict[str, np.ndarray]]:
    """The message and its arrays; raises MessageError for anything that is not such a message."""
    digest, body = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise MessageError(f"the bytes are no {expected.__name__}, or were damaged on their way")
    try:
        facts = json.loads(_header(body)["__metadata__"][_FACTS])[expected.__name__]
        arrays = safetensors.numpy.load(body)
        return expected.model_validate_json(json.dumps(facts)), arrays
    except ValidationError as error:
        wrong = "; ".join(".".join(map(str, one["loc"])) + ": " + one["msg"] for one in error.errors())
        raise MessageError(f"{expected.__name__} is malformed: {wrong}") from None
    except (
        SafetensorError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise MessageError(f"the bytes are no {expected.__name__} ({type(error).__name__})") from None


@dataclass(frozen=True)
class Outline:
    """What a message is made of: its kind, its facts, and the size in bytes of each array."""

    kind: str
    facts: Mapping[str, Any]
    arrays: Mapping[str, int]


def outline(data: bytes) -> Outline:
    """The outline of a message whose arrays stay unread, and whose facts nobody has checked. Raises MessageError."""
    try:
        header = _header(data[DIGEST_BYTES:])
        ((kind, facts),) = json.loads(header.pop("__metadata__")[_FACTS]).items()
        sizes = {name: end - start for name, one in header.items() for start, end in [one["data_offsets"]]}
        return Outline(kind, dict(facts), sizes)
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise MessageError(f"the bytes are no message ({type(error).__name__})") from None


def _header(body: bytes) -> Any:  # noqa: ANN401
    return json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
