"""What a forward and a backward pass leave behind for the gradients of patients: hooks on every layer that learns.

Shapes: R routed rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from flexmoe_core.bank import Bank
from flexmoe_core.encoders.sequence import GatedRecurrence
from flexmoe_core.experts import Dispatch, Experts, ExpertWeights
from flexmoe_core.model import FlexMoe
from flexmoe_core.pooling import AttentionPooling
from flexmoe_core.router import Router

RECORDED = (nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.Conv3d, Experts, Bank)
"""Layers whose gradients follow from their inputs and the gradients of their outputs."""
COPIED = (FlexMoe, Router, AttentionPooling, GatedRecurrence)
"""Modules whose own parameters are few, and may come as one copy for each patient."""


@dataclass
class Call:
    """One call of a layer: what went in, and the gradient of what came out (None: the loss does not depend on it)."""

    inputs: tuple[Tensor, ...]
    gradient: Tensor | None = None
    layer: int = 0
    dispatch: Dispatch | None = None

    def receive(self, gradient: Tensor) -> None:
        """What the backward pass found."""
        self.gradient = gradient


class Tape:
    """Records the calls of the layers of a model that learn, by name, while it is attached to it.

    Raises TypeError for a layer that learns and is of no known kind: its parameters would escape the clipping.
    """

    def __init__(self, model: FlexMoe) -> None:
        self.model = model
        self.layers: dict[str, nn.Module] = {}
        self.copied: dict[str, Tensor] = {}
        self.calls: dict[str, list[Call]] = {}
        self._bank_alone = False
        for name, module in model.named_modules():
            own = {f"{name}.{key}".lstrip("."): value for key, value in module.named_parameters(recurse=False)}
            if not any(value.requires_grad for value in own.values()):
                continue
            if isinstance(module, RECORDED):
                self.layers[name] = module
            elif isinstance(module, COPIED):
                # A router's bias is no matter of gradients.
                self.copied |= {key: value for key, value in own.items() if not key.endswith("router.bias")}
            else:
                raise TypeError(f"no gradients of single patients are known for {', '.join(own)}")

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Listen to every call of the model's layers."""
        handles = [
            layer.register_forward_hook(partial(self._listen_to_experts, name))
            if isinstance(layer, Experts)
            else layer.register_forward_hook(partial(self._record, name))
            for name, layer in self.layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def bank_alone(self) -> Iterator[None]:
        """Meanwhile nothing learns but the bank."""
        self._bank_alone = True
        try:
            yield
        finally:
            self._bank_alone = False

    def clear(self) -> None:
        """Forget all calls."""
        self.calls = {}

    def _record(self, name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self._bank_alone and not isinstance(layer, Bank):
            return None
        tensors = tuple(one.detach() for one in inputs if isinstance(one, Tensor))
        return self._keep(name, Call(tensors), output)

    def _listen_to_experts(
        self, name: str, layer: nn.Module, inputs: tuple[Any, ...], weights: ExpertWeights
    ) -> ExpertWeights | None:
        if self._bank_alone:
            return None

        def listen(layer: int, inputs_RI: Tensor, outputs_RO: Tensor, dispatch: Dispatch) -> Tensor:
            return self._keep(name, Call((inputs_RI.detach(),), None, layer, dispatch), outputs_RO)

        return replace(weights, listener=listen)

    def _keep(self, name: str, call: Call, output: Tensor) -> Tensor:
        self.calls.setdefault(name, []).append(call)
        if not output.requires_grad:
            output.requires_grad_()
        output.register_hook(call.receive)
        return output
