"""The yardstick is the published model: its size, and that it learns."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from flexmoe_core.settings import ModelSettings, paper
from simulations.bench.reference import ReferenceFlexMoe
from simulations.bench.workload import build_workload


def test_it_has_the_parameters_of_the_published_model() -> None:
    model = ReferenceFlexMoe([100] * 4, 3, paper().model)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert model.bank.numel() == 122_880
    assert counts["experts"] == 16 * 65_920 + 4_096
    assert counts["attention"] == 65_664
    assert counts["head"] == 1_539
    total = sum(parameter.numel() for parameter in model.parameters()) - counts["encoders"]
    assert total == pytest.approx(1.2576e6, rel=1e-4)


def test_it_learns() -> None:
    torch.manual_seed(0)
    settings = ModelSettings(tokens=2, width=16, experts=4, active_experts=2, expert_width=16, dropout=0.0)
    workload = build_workload(3, 7, 4, patients=64, features=5)
    cohort = replace(workload.cohort, labels_B=(workload.cohort.masks_B == 7).long())  # what is missing tells it
    expert_B = workload.table.place(cohort.masks_B).expert_B
    model = ReferenceFlexMoe([5] * 3, 2, settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        logits_BY, routing = model(cohort, cohort.masks_B, expert_B)
        task = cross_entropy(logits_BY, cohort.labels_B)
        optimizer.zero_grad()
        (task + routing).backward()
        optimizer.step()
        losses.append(float(task.detach()))
    assert losses[-1] < 0.3 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())
