"""The floor counts what a dense count of the same matrix products gives."""

import torch

from flexmoe_core.settings import ModelSettings
from simulations.bench.floor import multiply_adds


def test_multiply_adds_are_counted_by_hand() -> None:
    settings = ModelSettings(
        tokens=2, width=8, heads=2, experts=4, active_experts=2, expert_width=16, encoder_hidden=5
    )
    observed = torch.tensor([[True, True, False], [True, False, False]])
    tokens = 3 * 2
    attention = tokens * (8 * 24 + 8 * 8) + 2 * tokens * tokens * 8
    mixture = tokens * (2 * 8 * 4 + 2 * (8 * 16 + 16 * 8))
    head = 3 * 8 * 7
    encoders = 3 * (2 * 10 * 5 + 3 * 5 * 16)  # no gradient of the input
    assert multiply_adds(settings, observed, 10, 7) == encoders + 2 * 3 * (attention + mixture + head)
