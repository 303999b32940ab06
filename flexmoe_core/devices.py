"""Which device a site computes on, how its memory is used again, and that it computes the same again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from flexmoe_core.errors import InputError, Problem

AUTOMATIC = "auto"
LARGEST_KEPT = (1 << 25) - (1 << 13)
"""Bytes, just below the largest block that glibc learns to keep."""


def choose_device(name: str) -> torch.device:
    """``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:1``; raises InputError for what is not there."""
    gpus = torch.cuda.device_count()
    if name == AUTOMATIC:
        return torch.device("cuda" if gpus else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in {"cpu", "cuda"}:
        raise InputError([Problem("device", name, "is not known", "Write auto, cpu, cuda, or cuda:1 and so on.")])
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise InputError(
            [Problem("device", name, f"is not there: this machine shows {gpus} GPUs", "Write auto or cpu.")]
        )
    return device


def keep_freed_memory() -> None:
    """Let each training step on a CPU use the memory that the one before has freed.

    glibc returns a large block to the system at once, which then clears every page of the next. It does so no more
    for sizes that were freed before; this block is never touched. Another allocator takes no notice.
    """
    torch.empty(LARGEST_KEPT, dtype=torch.uint8)


@contextmanager
def reproducible_convolutions() -> Iterator[None]:
    """Keep cuDNN from algorithms that add up in another order every time: of all that a model does, only these."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before
