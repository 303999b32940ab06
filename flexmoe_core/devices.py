"""Which device a site computes on."""

from __future__ import annotations

import torch

from flexmoe_core.errors import InputError, Problem

AUTOMATIC = "auto"


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
