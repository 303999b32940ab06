"""What is timed: generated patients, and one step of our training and of the reference on them.

Shapes: B patients, M modalities, F features of each modality.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.model import FlexMoe, ModalityInput, build_model
from flexmoe_core.privacy.engine import Batch, PatientEngine
from flexmoe_core.privacy.events import PatientMechanism
from flexmoe_core.privacy.secret_source import OperatingSystemSource
from flexmoe_core.privacy.training import PrivateSteps
from flexmoe_core.randomness import torch_generator
from flexmoe_core.settings import MethodSettings
from flexmoe_core.steps import Draws, Steps, autocast
from simulations.bench.reference import ReferenceFlexMoe

FEATURES = 100
CLASSES = 3
SEED = 0

Step = Callable[[], None]


@dataclass(frozen=True)
class Workload:
    """Patients whose combinations were drawn evenly from those observed, and the table that knows all of these."""

    cohort: Cohort
    table: CombinationTable

    def batches(self, batch: int) -> Callable[[], Tensor]:
        """Draws the positions of a batch; the same sequence for whoever begins."""
        draws, device = torch_generator(SEED, "batches"), self.cohort.labels_B.device
        return lambda: torch.randint(len(self.cohort), (batch,), generator=draws).to(device)


def build_workload(
    modalities: int, combinations: int, experts: int, patients: int = 4096, features: int = FEATURES
) -> Workload:
    """Random values and labels; so many different combinations, or all that there are."""
    draws = torch_generator(SEED, "patients")
    most = (1 << modalities) - 1
    masks: dict[int, None] = {}
    while len(masks) < min(combinations, most):
        masks |= dict.fromkeys(torch.randint(1, most + 1, (combinations,), generator=draws).tolist())
    observed_C = torch.tensor(list(masks)[:combinations])
    masks_B = observed_C[torch.randint(len(observed_C), (patients,), generator=draws)]
    observed_BM = (masks_B[:, None] >> torch.arange(modalities) & 1).bool()
    inputs = {
        f"m{m}": torch.randn(patients, features, generator=draws) * observed_BM[:, m : m + 1]
        for m in range(modalities)
    }
    cohort = Cohort(inputs, observed_BM, torch.randint(CLASSES, (patients,), generator=draws))
    announced = {"site": dict.fromkeys(observed_C.tolist(), 10)}
    return Workload(cohort, CombinationTable.build(modalities, experts, announced, min_full=1))


def build_our_model(workload: Workload, settings: MethodSettings) -> FlexMoe:
    """A Flex-MoE of the library for the workload's modalities."""
    names, device = tuple(workload.cohort.inputs), workload.cohort.labels_B.device
    inputs = [ModalityInput(name, "tabular", (x_BF.shape[1],)) for name, x_BF in workload.cohort.inputs.items()]
    return build_model(names, inputs, CLASSES, workload.table, settings.model, SEED).to(device)


def our_step(workload: Workload, settings: MethodSettings, batch: int) -> Step:
    """A step exactly as a hospital takes it in the specialize stage."""
    device = workload.cohort.labels_B.device
    hiding, dropping = torch_generator(SEED, "hiding"), torch_generator(SEED, "dropping")
    draws = Draws(hiding, dropping, torch_generator(SEED, "noise", device=device))
    steps = Steps(
        build_our_model(workload, settings),
        workload.table,
        settings,
        draws,
        specialize=True,
        replayed=batch if device.type == "cuda" else None,
    )
    placement, next_batch = workload.table.place(workload.cohort.masks_B), workload.batches(batch)

    def step() -> None:
        index_B = next_batch()
        steps.take(workload.cohort.select(index_B), placement.select(index_B), None)

    return step


def private_step(workload: Workload, settings: MethodSettings, batch: int) -> Step:
    """The same under patient-level privacy: real batches of that size, and all else as in a private round."""
    mechanism = PatientMechanism(
        sampling_rate=batch / len(workload.cohort), steps=1, clip=1.0, noise_multiplier=1.0, expected_batch=batch
    )
    engine = PatientEngine(build_our_model(workload, settings), workload.table, settings, specialize=True)
    steps = PrivateSteps(engine, mechanism, OperatingSystemSource(), quantile=0.0)
    everyone = Batch(workload.cohort, workload.table.place(workload.cohort.masks_B), None)
    next_batch = workload.batches(batch)

    def step() -> None:
        with engine.tape.attached():
            steps.take(everyone.select(next_batch()))

    return step


def reference_step(workload: Workload, settings: MethodSettings, batch: int) -> Step:
    """The same by the plain reference, with plain Adam."""
    features = [x_BF.shape[1] for x_BF in workload.cohort.inputs.values()]
    device = workload.cohort.labels_B.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = ReferenceFlexMoe(features, CLASSES, settings.model).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.training.learning_rate)
    masks_B, expert_B = workload.cohort.masks_B, workload.table.place(workload.cohort.masks_B).expert_B
    next_batch, total = workload.batches(batch), 0.0

    def step() -> None:
        nonlocal total
        index_B = next_batch()
        patients = workload.cohort.select(index_B)
        with autocast(device, settings.training.precision):
            logits_BY, routing = model(patients, masks_B[index_B], expert_B[index_B])
            loss = cross_entropy(logits_BY, patients.labels_B) + routing
        total += float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
