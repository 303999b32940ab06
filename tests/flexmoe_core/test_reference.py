"""The whole model against loops that read like the method: per patient, per token, per expert, all of them dense.

No sort, no stacking, no table look-up of the code under test is used here: what they agree on is the method.
"""

import math
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.model import FlexMoe
from tests.flexmoe_core.cohorts import gradients, modality_names, random_cohort, random_model, table_of


def reference_logits(model: FlexMoe, cohort: Cohort, table: CombinationTable, specialize: bool) -> Tensor:
    """Class logits (B, Y) without noise and dropout."""
    rows = []
    for b, mask in enumerate(cohort.masks_B.tolist()):
        tokens = [token + model.position[n] for n, token in enumerate(_embedded(model, cohort, table, b, mask))]
        for layer, parameters in enumerate(_layers(model)):
            tokens = _attended(tokens, parameters, model.settings.heads)
            sparse = layer % 2 == 0
            own = _expert_of(table, mask) if specialize and mask != table.full_mask else None
            tokens = [
                token + (_mixed(model, parameters, _normed(token, parameters, "feed_forward_norm"), n, own)
                         if sparse else _dense(parameters, _normed(token, parameters, "feed_forward_norm")))
                for n, token in enumerate(tokens)
            ]  # fmt: skip
        rows.append(model.head.weight @ _pooled(model, tokens) + model.head.bias)
    return torch.stack(rows) if rows else torch.zeros(0, len(model.head.bias), dtype=torch.float64)


def _layers(model: FlexMoe) -> list[dict[str, Tensor]]:
    prefixes = [f"layers.{layer}." for layer in range(model.settings.layers)]
    named = dict(model.named_parameters())
    return [{k.removeprefix(p): v for k, v in named.items() if k.startswith(p)} for p in prefixes]


def _embedded(model: FlexMoe, cohort: Cohort, table: CombinationTable, b: int, mask: int) -> list[Tensor]:
    """Encoded or imputed tokens of one patient, in the order of the modalities."""
    tokens: list[Tensor] = []
    for m, name in enumerate(modality_names(table.modalities)):
        if mask >> m & 1:
            encoder = model.encoders[f"{name}-encoder"]
            weight, bias = encoder.get_parameter("projection.weight"), encoder.get_parameter("projection.bias")
            tokens += (weight @ cohort.inputs[name][b] + bias).split(model.settings.width)
        else:
            tokens += [token + model.imputed for token in _banked(model, table, mask, m)]
    return tokens


def _banked(model: FlexMoe, table: CombinationTable, mask: int, missing: int) -> Tensor:
    default, residual = (model.bank.get_parameter(name) for name in ("default", "residual"))
    if model.settings.bank == "compositional":
        seen = [j for j in range(table.modalities) if mask >> j & 1]
        return default[missing] + sum(residual[j * table.modalities + missing] for j in seen) / max(len(seen), 1)
    lacking = [known for known in table.masks if not known >> missing & 1]
    if not lacking:
        return default[missing]
    return default[missing] + residual[table.slots.index((_nearest(lacking, mask), missing))]


def _nearest(known: list[int], mask: int) -> int:
    """Fewest differing modalities, then a superset, then the first."""
    return min(known, key=lambda one: ((one ^ mask).bit_count(), bool(mask & ~one), known.index(one)))


def _expert_of(table: CombinationTable, mask: int) -> int:
    return table.experts[table.masks.index(_nearest(list(table.masks), mask))]


def _normed(token: Tensor, parameters: dict[str, Tensor], name: str) -> Tensor:
    centered = token - token.mean()
    scaled = centered / (centered.square().mean() + 1e-5).sqrt()
    return scaled * parameters[f"{name}.weight"] + parameters[f"{name}.bias"]


def _attended(tokens: list[Tensor], parameters: dict[str, Tensor], heads: int) -> list[Tensor]:
    normed = [_normed(token, parameters, "attention_norm") for token in tokens]
    width = len(tokens[0])
    projected = [
        (parameters["attention.project_in.weight"] @ token + parameters["attention.project_in.bias"]).split(width)
        for token in normed
    ]
    results = []
    for n, token in enumerate(tokens):
        parts = []
        for head in range(heads):
            own = slice(head * width // heads, (head + 1) * width // heads)
            query = projected[n][0][own]
            scores = torch.stack([query @ key[own] / math.sqrt(width // heads) for _, key, _ in projected])
            parts.append(sum(w * value[own] for w, (_, _, value) in zip(scores.softmax(0), projected, strict=True)))
        out = parameters["attention.project_out.weight"] @ torch.cat(parts)
        results.append(token + out + parameters["attention.project_out.bias"])
    return results


def _gelu(x: Tensor) -> Tensor:
    below: Tensor = torch.special.ndtr(x)
    return x * below


def _dense(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    hidden = _gelu(parameters["dense.expand.weight"] @ x + parameters["dense.expand.bias"])
    return parameters["dense.contract.weight"] @ hidden + parameters["dense.contract.bias"]


def _mixed(model: FlexMoe, parameters: dict[str, Tensor], x: Tensor, position: int, own: int | None) -> Tensor:
    """Every expert applied, and weighed by its gate, most of which are zero."""
    experts, active = model.settings.experts, model.settings.active_experts
    modality = position // model.settings.tokens if model.settings.router == "modality" else 0
    weight = parameters["mixture.router.weight"][modality * experts : (modality + 1) * experts]
    logits = weight @ x
    bias = parameters.get("mixture.router.bias", torch.zeros(experts))
    ranked = [float(logits[e].detach() + (0 if e == own else bias[e])) for e in range(experts)]
    best = sorted(range(experts), key=lambda e: -ranked[e])
    gates: dict[int, Tensor] = {}
    if own is not None and model.settings.specialization == "pinned":
        a = parameters["mixture.router.gate"][modality]
        share = 0.5 + 0.5 * a.sigmoid() if active > 1 else torch.ones(())
        gates[own] = share
        others = [e for e in best if e != own][: active - 1]
        gates |= {e: (1 - share) * gate for e, gate in zip(others, logits[others].softmax(0), strict=True)}
    else:
        gates |= dict(zip(best[:active], logits[best[:active]].softmax(0), strict=True))
    total = torch.zeros_like(x)
    for e in range(experts):
        hidden = _gelu(x @ parameters["mixture.experts.w1"][e] + parameters["mixture.experts.b1"][e])
        out = hidden @ parameters["mixture.experts.w2"][e] + parameters["mixture.experts.b2"][e]
        total = total + gates.get(e, torch.zeros(())) * out
    return total


def _pooled(model: FlexMoe, tokens: list[Tensor]) -> Tensor:
    each, width = model.settings.tokens, model.settings.width
    if model.settings.pooling == "concat":
        groups = [tokens[start : start + each] for start in range(0, len(tokens), each)]
        return torch.cat([torch.stack(group).mean(dim=0) for group in groups])
    parts, size = [], width // model.settings.heads
    for head, query in enumerate(model.get_parameter("pooling.query")):
        shares = torch.stack([query @ token / math.sqrt(width) for token in tokens]).softmax(0)
        parts.append(
            sum(share * token[head * size : (head + 1) * size] for share, token in zip(shares, tokens, strict=True))
        )
    return torch.cat(parts)


@st.composite
def draw_options(draw: st.DrawFn) -> dict[str, Any]:
    experts = draw(st.integers(1, 5))
    return {
        "tokens": draw(st.integers(1, 3)),
        "layers": draw(st.integers(1, 3)),
        "experts": experts,
        "active_experts": draw(st.integers(1, experts)),
        "specialization": draw(st.sampled_from(["pinned", "learned"])),
        "router": draw(st.sampled_from(["shared", "modality"])),
        "balancing": draw(st.sampled_from(["loss", "bias"])),
        "bank": draw(st.sampled_from(["table", "compositional"])),
        "pooling": draw(st.sampled_from(["concat", "attention"])),
    }


@settings(max_examples=40, deadline=None)
@given(data=st.data(), options=draw_options(), modalities=st.integers(1, 5), seed=st.integers(0, 1000))
def test_the_model_is_the_method_written_out(
    data: st.DataObject, options: dict[str, Any], modalities: int, seed: int
) -> None:
    combinations = st.integers(1, (1 << modalities) - 1)
    known, masks = data.draw(st.sets(combinations, max_size=5)), data.draw(st.lists(combinations, max_size=4))
    specialize = data.draw(st.booleans())
    table = table_of(known, modalities, experts=options["experts"])
    model = random_model(table, seed, **options)
    cohort = random_cohort(masks, modalities, seed)
    found = model(cohort, table.place(cohort.masks_B), specialize=specialize).logits_BY
    expected = reference_logits(model, cohort, table, specialize)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weight_BY = torch.linspace(-1, 2, found.numel(), dtype=torch.float64).reshape(found.shape)
    learned, written = (gradients(model, (logits_BY * weight_BY).sum()) for logits_BY in (found, expected))
    for name, gradient in learned.items():
        torch.testing.assert_close(gradient, written[name], rtol=1e-9, atol=1e-10)
