"""Random shared tensors and the updates of random sites."""

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from flexmoe_core.update import TensorSpec, Update


@st.composite
def shared_tensors(draw: st.DrawFn) -> tuple[TensorSpec, ...]:
    shapes = draw(st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4))
    by_row = draw(st.lists(st.booleans(), min_size=len(shapes), max_size=len(shapes)))
    return tuple(
        TensorSpec(f"t{index}", tuple(shape), shape[0] if shape and rows else 1)
        for index, (shape, rows) in enumerate(zip(shapes, by_row, strict=True))
    )


def random_update(rng: np.random.Generator, specs: tuple[TensorSpec, ...], scale: float = 1.0) -> Update:
    """A third of the tensors are not sent, and a third of the rows of the others have no support."""
    weighted: dict[str, NDArray[np.float32]] = {}
    support: dict[str, NDArray[np.float64]] = {}
    for spec in specs:
        if rng.random() < 1 / 3:
            continue
        w_R = np.where(rng.random(spec.rows) < 1 / 3, 0.0, rng.uniform(0.1, 50, spec.rows))
        delta_RF = scale * rng.standard_normal(spec.row_shape)
        weighted[spec.name] = (w_R[:, None] * delta_RF).astype(np.float32).reshape(spec.shape)
        support[spec.name] = w_R
    return Update(weighted, support)


@st.composite
def federations(draw: st.DrawFn, max_sites: int = 6) -> tuple[tuple[TensorSpec, ...], list[Update]]:
    specs, sites = draw(shared_tensors()), draw(st.integers(0, max_sites))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return specs, [random_update(rng, specs) for _ in range(sites)]


def sent(delta: float | list[float], w: float) -> Update:
    """One site's update of the single tensor ``x`` with one weight."""
    values = w * np.atleast_1d(np.asarray(delta, dtype=np.float32))
    return Update({"x": values.astype(np.float32)}, {"x": np.array([w])})
