"""The one-run audit of DP-SGD: canaries that a coin lets in, an auditor who sees every parameter, and a bound.

A run is a line of results.jsonl; one that has its line, with the same choices, is not done again.
Shapes: m canaries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from flexmoe_core.privacy.accounting import epsilon_of, noise_multiplier_for
from flexmoe_core.privacy.events import PatientMechanism
from flexmoe_core.privacy.secret_source import OperatingSystemSource
from flexmoe_core.privacy.settings import Positive, Probability
from flexmoe_core.randomness import numpy_generator
from flexmoe_core.validation import FrozenModel
from simulations.audits.builds import BUILDS, PLAIN, Round
from simulations.audits.canaries import (
    ENCODER,
    Size,
    canary_hospital,
    canary_model,
    canary_settings,
    directions,
    seen_by_auditor,
)
from simulations.audits.one_run import OneRunBound, best_bound
from simulations.results import RESULTS, run_kept

CLIP = 0.1
GUESSED = (0.1, 0.2, 0.4, 0.8)
"""Shares of the canaries about whom the auditor guesses; each is tested, and the bound pays for the choice."""
CONFIDENCE = 0.99


class Schedule(FrozenModel):
    """Rounds of one step each, after which the auditor looks; every patient is in a step with the sampling rate."""

    rounds: int = Field(ge=1)
    sampling_rate: float = Field(gt=0, le=1)

    @property
    def title(self) -> str:
        """What a table calls it."""
        if (self.rounds, self.sampling_rate) == (1, 1.0):
            return "1 step of everybody"
        who = "everybody" if self.sampling_rate == 1 else f"{100 * self.sampling_rate:g}%"
        return f"{self.rounds} steps of {who}"


class CanaryRun(FrozenModel):
    """One training run to audit: what is claimed, how it trains, and who could be there."""

    build: Literal["shipped", "no privacy", "noise", "tokens", "encoder"]
    epsilon: Positive
    delta: Probability
    schedule: Schedule
    size: Size
    canaries: int = Field(ge=10)
    ordinary: int = Field(ge=0)
    number: int = Field(ge=0)


class CanaryResult(FrozenModel):
    """``claimed`` is what the ledger would say (None: nothing is claimed), ``bound`` what the auditor can prove."""

    run: CanaryRun
    noise_multiplier: float
    claimed: float | None
    bound: float
    guesses: int
    correct: int
    scores: tuple[float, ...]
    included: tuple[bool, ...]

    @property
    def is_caught(self) -> bool:
        """Whether the bound refutes the claim."""
        return self.claimed is not None and self.bound > self.claimed


def audit_canaries(out: Path, runs: Sequence[CanaryRun], processes: int = 0) -> Iterator[CanaryResult]:
    """Each run's result as soon as it is there, stored ones first. Raises InputError."""
    kept = run_kept(out / RESULTS, audit_run, runs, CanaryResult, lambda result: result.run, processes)
    yield from (result for result, _ in kept)


def audit_run(run: CanaryRun) -> CanaryResult:
    """Flip a coin for each canary, train, look after each round, and guess.

    The coins are the auditor's and may be known; the noise is the secret source's.
    """
    rounds, rate = run.schedule.rounds, run.schedule.sampling_rate
    mechanism = PatientMechanism(
        sampling_rate=rate,
        steps=1,
        clip=CLIP,
        noise_multiplier=noise_multiplier_for(run.epsilon, run.delta, rate, rounds),
        expected_batch=rate * (run.canaries / 2 + run.ordinary),
    )
    included = numpy_generator(run.number, "coins").random(run.canaries) < 0.5
    scores = _train_and_look(run, mechanism, included)
    bound = bound_of(scores, included, run.delta)
    claimed = None if run.build == PLAIN else epsilon_of([mechanism.event] * rounds, run.delta)
    return CanaryResult(
        run=run,
        noise_multiplier=mechanism.noise_multiplier,
        claimed=claimed,
        bound=bound.epsilon,
        guesses=bound.guesses,
        correct=bound.correct,
        scores=tuple(np.round(scores, 5).tolist()),
        included=tuple(included.tolist()),
    )


def bound_of(scores: np.ndarray, included: np.ndarray, delta: float) -> OneRunBound:
    """The bound at ``CONFIDENCE``, of numbers of guesses that are fixed by the number of canaries."""
    guesses = sorted({max(2, int(share * len(scores)) // 2 * 2) for share in GUESSED})
    return best_bound(scores, included, guesses, delta, CONFIDENCE)


def _train_and_look(run: CanaryRun, mechanism: PatientMechanism, included: np.ndarray) -> np.ndarray:
    """How far each canary's column went in its direction (m,), summed over rounds."""
    hospital, settings = canary_hospital(run.canaries, run.ordinary, run.number), canary_settings(run.size)
    model, cohort, source = (
        canary_model(hospital, settings),
        hospital.with_canaries(included),
        OperatingSystemSource(),
    )
    unit = settings.training.learning_rate * mechanism.clip / mechanism.expected_batch
    scores = np.zeros(run.canaries)
    for _ in range(run.schedule.rounds):
        direction_OF = directions(model, hospital)
        before_OF = model.get_parameter(ENCODER).detach().clone()
        BUILDS[run.build](Round(model, cohort, hospital.table, settings, mechanism, source))
        scores += seen_by_auditor(before_OF, model.get_parameter(ENCODER).detach(), direction_OF, unit)
    return scores
