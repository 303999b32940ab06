"""What a measurement was made on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from flexmoe_core.validation import FrozenModel

CPU_INFO = Path("/proc/cpuinfo")


class Machine(FrozenModel):
    """Names and versions; ``gpu`` is None where there is none."""

    cpu: str
    threads: int
    gpu: str | None
    torch: str
    python: str
    system: str


def this_machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(
        cpu=_cpu_name(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        torch=torch.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
    )


def _cpu_name() -> str:
    """As the kernel calls it; ``platform`` alone knows only the architecture."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
