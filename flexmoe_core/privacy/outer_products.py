"""Squared norms of sums of outer products, mostly without forming any: ghost norms (Li et al. 2021, 2110.05679).

The gradient of an affine layer's weight is, for one patient, the sum over his rows of an input times the gradient of
an output; that of its bias is the same with an input of one.

Shapes: G groups of rows, T rows of a group, I inputs, O outputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

AT_ONCE = 1 << 23
"""Elements of what is formed for some groups at once."""
ROUNDING = 4.0
"""Standard deviations of a Gram matrix' rounding errors, which add up like chance (Higham & Mary 2019)."""


def squared_norms(inputs_GTI: Tensor, gradients_GTO: Tensor, weight: bool, bias: bool) -> Tensor:
    """(G,): of sum over T of inputs x gradients, and of the bias' sum, those that count.

    Of two ways the one with fewer multiplications. With Gram matrices, terms that cancel leave rounding errors of a
    size that the result does not show, so a generous estimate of these is added: a norm is rather too large than too
    small.
    """
    rows, width_in, width_out = inputs_GTI.shape[1], inputs_GTI.shape[2], gradients_GTO.shape[2]
    by_gram = rows * (width_in + width_out) <= width_in * width_out or rows == 1
    way, size = (_by_gram, rows**2) if by_gram else (_outright, width_in * width_out)
    parts = zip(*(x.split(max(AT_ONCE // size, 1)) for x in (inputs_GTI, gradients_GTO)), strict=True)
    return torch.cat([way(inputs, gradients, weight, bias) for inputs, gradients in parts])


def _by_gram(inputs_GTI: Tensor, gradients_GTO: Tensor, weight: bool, bias: bool) -> Tensor:
    gram_GTT = _gram(inputs_GTI) if weight else gradients_GTO.new_zeros(())
    if bias:
        gram_GTT = gram_GTT + 1.0
    of_gradients_GTT = _gram(gradients_GTO)
    largest_GTT = gram_GTT.expand_as(of_gradients_GTT) * of_gradients_GTT
    if inputs_GTI.shape[1] == 1:
        return largest_GTT.flatten(1).sum(dim=1)
    # Each row's own product is the square of the norm of its term.
    most_G = largest_GTT.diagonal(dim1=1, dim2=2).clamp(min=0.0).sqrt().sum(dim=1).square()
    summands = inputs_GTI.shape[2] + gradients_GTO.shape[2] + inputs_GTI.shape[1] ** 2
    error = ROUNDING * torch.finfo(most_G.dtype).eps * math.sqrt(summands)
    return largest_GTT.flatten(1).sum(dim=1).clamp(min=0.0) + error * most_G


def _gram(x_GTW: Tensor) -> Tensor:
    return torch.bmm(x_GTW, x_GTW.transpose(1, 2))


def _outright(inputs_GTI: Tensor, gradients_GTO: Tensor, weight: bool, bias: bool) -> Tensor:
    norms_G = gradients_GTO.new_zeros(len(gradients_GTO))
    if weight:
        norms_G = norms_G + (inputs_GTI.transpose(1, 2) @ gradients_GTO).flatten(1).square().sum(dim=1)
    if bias:
        norms_G = norms_G + gradients_GTO.sum(dim=1).square().sum(dim=1)
    return norms_G
