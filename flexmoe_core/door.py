"""The door: what is wrong with one site's update, in plain words, before any of it is summed.

The coordinator stands there; under masks it cannot, and each site examines its own update.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveFloat

from flexmoe_core.update import MAGNITUDE_BITS, TensorSpec, Update, fits_fixed_point, joint_norm

_NAMES_SHOWN = 5
_NAME_LENGTH = 80


class UpdateLimits(BaseModel):
    """Bounds on one site's update.

    ``max_support`` and ``min_support`` bound the support of a row in patients (zero is always legal); below
    ``min_support`` the rounding of the fixed-point code would show in the quotient. ``max_norm`` bounds the
    L2 norm of the site's delta over all tensors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_support: PositiveFloat = 100_000.0
    min_support: PositiveFloat = 2.0**-16
    max_norm: PositiveFloat = 1_000.0


def validate_reply(update: object, specs: Iterable[TensorSpec], limits: UpdateLimits) -> list[str]:
    """Everything wrong with one site's update; an empty list lets it in. Never raises.

    Tensors that are missing from both halves are legal: the site did not train them. Shared tensors are
    floating point only, so integer arrays are refused by name.
    """
    if not isinstance(update, Update):
        return ["the reply holds no update"]
    if not isinstance(update.weighted, Mapping) or not isinstance(update.support, Mapping):
        return ["the update's weighted deltas and supports must each be a mapping of names to arrays"]
    specs = list(specs)
    known = {spec.name for spec in specs}
    problems = [
        f"{half} of {_some_names(extra)}: no such shared tensor"
        for half, values in (("weighted delta", update.weighted), ("support", update.support))
        if (extra := [name for name in values if name not in known])
    ]
    sound: list[TensorSpec] = []
    for spec in specs:
        wrong = list(_problems_of_tensor(update, spec, limits))
        problems += wrong
        if not wrong:
            sound.append(spec)
    norm = joint_norm(update, sound)
    if norm > limits.max_norm:
        problems.append(f"the delta's norm {norm:.4g} is above the bound {limits.max_norm:.4g}")
    return problems


def _problems_of_tensor(update: Update, spec: TensorSpec, limits: UpdateLimits) -> Iterator[str]:
    present = (spec.name in update.weighted, spec.name in update.support)
    if not any(present):
        return
    if not all(present):
        yield f"{spec.name}: weighted delta and support must come together"
        return
    weighted, w_R = update.weighted[spec.name], update.support[spec.name]
    malformed = [
        *_problems_of_array(f"weighted delta of {spec.name}", weighted, spec.shape, np.dtype(np.float32)),
        *_problems_of_array(f"support of {spec.name}", w_R, (spec.rows,), np.dtype(np.float64)),
    ]
    if malformed:
        yield from malformed
        return
    if (w_R < 0).any():
        yield f"support of {spec.name} is negative"
    if (w_R > limits.max_support).any():
        yield f"support of {spec.name} is above {limits.max_support:g} patients"
    if ((w_R > 0) & (w_R < limits.min_support)).any():
        yield f"support of {spec.name} is positive but below {limits.min_support:g} patients"
    if weighted.reshape(spec.row_shape)[w_R == 0].any():
        yield f"weighted delta of {spec.name} is not zero where its support is"


def _problems_of_array(label: str, array: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[str]:
    if type(array) is not np.ndarray:  # a subclass may redefine what comparing and adding mean
        yield f"{label} is not an array"
        return
    if array.dtype != dtype:
        yield f"{label} has dtype {str(array.dtype)[:_NAME_LENGTH]}, expected {dtype}"
    if array.shape != shape:
        yield f"{label} has shape {array.shape}, expected {shape}"
    if (array.dtype, array.shape) != (dtype, shape) or fits_fixed_point(array):
        return  # values of an array of another shape are not read: it may be of any size
    if np.isfinite(array).all():
        yield f"{label} is outside the fixed-point range of 2**{MAGNITUDE_BITS}"
    else:
        yield f"{label} has NaN or infinite values"


def _some_names(names: Sequence[object]) -> str:
    """A few of the names, shortened: they come from outside, in any number and of any length."""
    shown = [
        ascii(name[:_NAME_LENGTH]) if isinstance(name, str) else f"a {type(name).__name__}"
        for name in names[:_NAMES_SHOWN]
    ]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
