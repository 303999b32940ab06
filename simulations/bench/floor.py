"""The floor: what a training step costs if its multiply-adds ran at the peak rate of matrix products.

Shapes: M modalities, P tokens per modality, N = M*P tokens, D width, E experts, K experts per token, H expert width.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from flexmoe_core.settings import ModelSettings
from flexmoe_core.trunk import is_sparse

GRADIENTS = 2
"""A matrix product has two gradients, each as expensive as itself."""


def multiply_adds(settings: ModelSettings, observed_BM: Tensor, features: int, classes: int) -> float:
    """Multiply-adds of a training step (forward and backward) on these patients, from shapes alone.

    Counts matrix products; no bank, norm, dropout, sort or optimizer.
    """
    patients, modalities = observed_BM.shape
    width, tokens = settings.width, modalities * settings.tokens
    out = settings.tokens * width
    hidden = settings.encoder_hidden
    encoder_input = features * (hidden or out)
    encoder_output = hidden * out
    attention = tokens * 4 * width**2 + 2 * tokens**2 * width
    sparse = tokens * (2 * width * settings.experts + settings.active_experts * 2 * width * settings.expert_width)
    dense = tokens * 2 * width * settings.expert_width
    trunk = sum(attention + (sparse if is_sparse(layer) else dense) for layer in range(settings.layers))
    head = modalities * width * classes
    encoded = float(observed_BM.sum())
    # Nobody needs the gradient of the features.
    return encoded * (GRADIENTS * encoder_input + (1 + GRADIENTS) * encoder_output) + patients * (1 + GRADIENTS) * (
        trunk + head
    )


class MatrixProduct:
    """A large product, whose time gives the machine's peak at this moment."""

    def __init__(self, device: torch.device, precision: torch.dtype) -> None:
        size = 1024 if device.type == "cpu" else 8192
        self.device, self.multiply_adds = device, size**3
        self.left, self.right = (torch.ones(size, size, dtype=precision, device=device) for _ in range(2))
        self.out = torch.empty_like(self.left)

    def __call__(self) -> None:
        """Multiply once."""
        torch.mm(self.left, self.right, out=self.out)


def seconds(call: object, device: torch.device, times: int = 1) -> float:
    """Wall time of one of so many calls in a row."""
    assert callable(call)
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / times


def synchronize(device: torch.device) -> None:
    """Wait for what a GPU was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
