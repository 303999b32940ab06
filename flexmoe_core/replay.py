"""One training step as a CUDA graph: on a GPU a small batch is many launches and little work, and a graph is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import fields, is_dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
WARM_UP = 3
"""Calls before the recording, in which the libraries choose their kernels and the optimizer makes its state."""
WORTHWHILE = 8
"""Calls that a recording has to serve before it pays for itself."""


class Replay(Generic[T]):
    """Calls a function of a dataclass of tensors three times, records the fourth call, and replays it from then on.

    The function works in place on tensors of one GPU, its shapes depend on those of its argument alone, and chance
    comes from ``noise`` alone. Every call has the same function and shapes. What the function does on the CPU is done
    when it is recorded, and never again.
    """

    def __init__(self, device: torch.device, noise: torch.Generator | None) -> None:
        self._device, self._noise = device, noise
        self._held: T | None = None
        self._calls, self._stream = 0, torch.cuda.Stream(device)
        self._graph = torch.cuda.CUDAGraph()

    def __call__(self, function: Callable[[T], None], argument: T) -> None:
        """As the function itself, on a stream of its own, for which later work on the current one waits.

        The function is not kept: in a circle of references the graph would be freed whenever it pleases the garbage
        collector, and a graph must not be freed while another is recorded.
        """
        around = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(around)
        with torch.cuda.stream(self._stream):
            if self._calls < WARM_UP:
                function(argument)
            else:
                if self._held is None:
                    self._record(function, argument)
                for held, value in zip(tensors_of(self._held), tensors_of(argument), strict=True):
                    held.copy_(value)
                self._graph.replay()
        around.wait_stream(self._stream)
        self._calls += 1

    def _record(self, function: Callable[[T], None], argument: T) -> None:
        self._held = held = deepcopy(argument)
        if self._noise is not None:
            self._graph.register_generator_state(self._noise)
        # Other threads of a client, such as its heartbeat, may use the GPU meanwhile.
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            function(held)


def tensors_of(value: object) -> Iterator[Tensor]:
    """The tensors in a dataclass of tensors, mappings, dataclasses and None, in a fixed order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from tensors_of(one)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))
    else:
        assert value is None
