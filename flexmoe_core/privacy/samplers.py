"""From what a layer's calls left behind to the gradients of single patients, one sampler for each kind of layer.

Layers of torch that have few parameters use the samplers of Opacus; experts and bank have their own.

Shapes: B patients, M modalities, T rows of a patient, I inputs, O outputs, F values of a modality's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import torch
from opacus.grad_sample.conv import compute_conv_grad_sample
from opacus.grad_sample.group_norm import compute_group_norm_grad_sample
from opacus.grad_sample.layer_norm import compute_layer_norm_grad_sample
from torch import Tensor, nn

from flexmoe_core.bank import CompositionalBank, TableBank
from flexmoe_core.experts import Experts
from flexmoe_core.privacy.patient_gradients import Affine, AffineNames, Lookup, PatientGradients, Routed, Whole
from flexmoe_core.privacy.tape import Call

OpacusSampler = Callable[[nn.Module, list[Tensor], Tensor], dict[nn.Parameter, Tensor]]
OPACUS: Mapping[type[nn.Module], OpacusSampler] = MappingProxyType(
    {
        nn.Conv3d: compute_conv_grad_sample,
        nn.GroupNorm: compute_group_norm_grad_sample,
        nn.LayerNorm: compute_layer_norm_grad_sample,
    }
)


def gradients_of(name: str, layer: nn.Module, calls: Sequence[Call], patients: int) -> Iterator[PatientGradients]:
    """The gradients of a layer's parameters that learn, over all of its calls (none: nothing).

    Raises TypeError for an unknown layer, ValueError where a row of a call cannot be told to be a patient's.
    """
    heard = [call for call in calls if call.gradient is not None]
    if not heard:
        return
    match layer:
        case nn.Linear():
            yield _of_linear(name, layer, heard, patients)
        case Experts():
            yield from _of_experts(name, layer, heard, patients)
        case TableBank() | CompositionalBank():
            yield from _of_bank(name, layer, heard, patients)
        case _:
            yield _by_opacus(name, layer, calls, patients)


def _learning(name: str, layer: nn.Module, key: str) -> str | None:
    """The full name of a parameter of the layer, if it has it and it learns."""
    parameter = getattr(layer, key)
    return f"{name}.{key}" if parameter is not None and parameter.requires_grad else None


def _gradient(call: Call, patients: int) -> Tensor:
    assert call.gradient is not None
    if len(call.gradient) != patients:
        raise ValueError("each row of a layer must be a patient's")
    return call.gradient


def _of_linear(name: str, layer: nn.Module, calls: Sequence[Call], patients: int) -> Affine:
    names = AffineNames(_learning(name, layer, "weight"), _learning(name, layer, "bias"), transposed=True)
    inputs = [_in_rows(call.inputs[0]) for call in calls]
    gradients = [_in_rows(_gradient(call, patients)) for call in calls]
    return Affine(names, torch.cat(inputs, dim=1), torch.cat(gradients, dim=1))


def _in_rows(x: Tensor) -> Tensor:
    """(B, I) or (B, T, I) to (B, T, I)."""
    return x.reshape(len(x), -1, x.shape[-1])


def _of_experts(name: str, layer: Experts, calls: Sequence[Call], patients: int) -> Iterator[Routed]:
    """Rows at a second copy of the experts, which does not learn, come last and are left out."""
    experts = len(layer.w1)
    if [call.layer for call in sorted(calls, key=lambda call: call.layer)] != [0, 1]:
        raise ValueError("experts must be used once in a pass")
    for call in calls:
        dispatch = call.dispatch
        assert dispatch is not None and call.gradient is not None
        learning, tokens = int(dispatch.ends_E[experts - 1]), len(dispatch.row_TK) // patients
        weight, bias = (("w1", "b1"), ("w2", "b2"))[call.layer]
        yield Routed(
            AffineNames(_learning(name, layer, weight), _learning(name, layer, bias)),
            patients,
            experts,
            dispatch.expert_R[:learning],
            dispatch.token_R[:learning] // tokens,
            call.inputs[0][:learning],
            call.gradient[:learning],
        )


def _of_bank(
    name: str, layer: TableBank | CompositionalBank, calls: Sequence[Call], patients: int
) -> Iterator[PatientGradients]:
    """The tokens that the bank gives are sums, so all that they are made of has their gradient."""
    gradients = [_gradient(call, patients) for call in calls]
    if default := _learning(name, layer, "default"):
        yield Whole({default: torch.stack(gradients).sum(dim=0)})
    residual = _learning(name, layer, "residual")
    if residual is None or layer.slots == 0:
        return
    if isinstance(layer, TableBank):
        slots_BT = torch.cat([call.inputs[0] for call in calls], dim=1)
        gradients_BTF = torch.cat([gradient.flatten(2) for gradient in gradients], dim=1)
        yield Lookup(residual, layer.slots, slots_BT, gradients_BTF)
    else:
        shares_BTM = torch.stack([layer.shares(call.inputs[1]) for call in calls], dim=1)
        gradients_BTO = torch.stack([gradient.flatten(1) for gradient in gradients], dim=1)
        yield Affine(AffineNames(residual, None), shares_BTM, gradients_BTO)


def _by_opacus(name: str, layer: nn.Module, calls: Sequence[Call], patients: int) -> Whole:
    """A call may see only the next few patients, as where volumes are read a few at a time."""
    sampler, totals, first = OPACUS[type(layer)], {}, 0
    names = {parameter: f"{name}.{key}" for key, parameter in layer.named_parameters(recurse=False)}
    for call in calls:
        samples = {} if call.gradient is None else sampler(layer, list(call.inputs), call.gradient)
        for parameter, sample in samples.items():
            if names[parameter] not in totals:
                totals[names[parameter]] = sample.new_zeros(patients, *parameter.shape)
            totals[names[parameter]][first : first + len(sample)] += sample
        first = (first + len(call.inputs[0])) % patients
    if first:
        raise ValueError("each row of a layer must be a patient's")
    return Whole(totals)
