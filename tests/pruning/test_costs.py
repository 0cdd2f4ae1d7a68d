"""Multiply-accumulates counted from shapes are those that torch counts while the model runs."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from pruning.budget import Budget
from pruning.costs import mac_costs, parameter_costs, total_cost
from pruning.families import declared_layout
from pruning.grouping import find_units
from pruning.layout import DecoderLayout
from pruning.model import count_parameters
from pruning.surgery import cut
from pruning.units import PruningPlan
from tests.plans import STRUCTURES, half_of, removes_something
from tests.zoo import MODELS, build

TOKENS = 16
COMBINED = ("heads", "width", "mixture", "depth_and_width", "layer")
"""Structures that touch every kind between them."""


def layout_of(model: PreTrainedModel) -> DecoderLayout:
    layout = declared_layout(model)
    assert layout is not None
    return layout


def counted_by_torch(model: PreTrainedModel) -> float:
    """Return half the floating-point operations of one sequence, with attention and experts as plain matrix products."""
    ids = torch.arange(TOKENS).view(1, -1)
    if layout_of(model).experts:
        model.set_experts_implementation("eager")
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter, sdpa_kernel(SDPBackend.MATH):
        model(input_ids=ids, use_cache=False)
    return counter.get_total_flops() / 2


def counted_by_shape(model: PreTrainedModel) -> int:
    return total_cost(model, mac_costs(model, layout_of(model), TOKENS))


def units_left(plan: PruningPlan, model: PreTrainedModel) -> dict[str, int]:
    """Return the counts of a plan, in units of every run that stays."""
    groups = find_units(model, layout_of(model))
    counts = {}
    for name, kept in plan.kept.items():
        group = groups[name]
        runs = plan.kept.get(group.parts_of or "", range(group.parts))
        counts[name] = group.run_length - len([unit for unit in kept if unit // group.run_length in runs]) // len(runs)
    return counts


@pytest.mark.parametrize("family", sorted(MODELS))
def test_the_dense_model_costs_what_torch_counts(family: str) -> None:
    model = build(family)
    assert counted_by_shape(model) == counted_by_torch(model)


@pytest.mark.parametrize("family", sorted(MODELS))
def test_a_cut_model_costs_what_torch_counts_and_what_the_budget_foresaw(family: str) -> None:
    tried = 0
    for name in COMBINED:
        model = build(family)
        groups = find_units(model, layout_of(model))
        plan = half_of(groups, STRUCTURES[name])
        if not removes_something(groups, plan):
            continue
        costs = mac_costs(model, layout_of(model), TOKENS)
        foreseen = total_cost(model, costs) - Budget(model, groups, costs).removed(units_left(plan, model))
        cut(model, layout_of(model), groups, plan)
        assert counted_by_shape(model) == counted_by_torch(model) == foreseen
        tried += 1
    assert tried >= 4


def test_parameters_cost_their_numbers_and_tied_ones_count_once(llama: PreTrainedModel) -> None:
    assert llama.config.tie_word_embeddings
    assert total_cost(llama, parameter_costs(llama)) == count_parameters(llama)
    head = counted_by_shape(llama) - counted_by_shape_without_head(llama)
    assert head == TOKENS * 258 * 32


def counted_by_shape_without_head(model: PreTrainedModel) -> int:
    costs = mac_costs(model, layout_of(model), TOKENS)
    return total_cost(model, {name: cost for name, cost in costs.items() if name.startswith("model.layers.")})


def test_a_token_pays_for_the_experts_it_is_sent_to_only() -> None:
    model = build("mixtral")
    costs = mac_costs(model, layout_of(model), TOKENS)
    experts = sum(costs[name](model.get_parameter(name).shape) for name in costs if ".experts." in name)
    assert experts == 4 * TOKENS * 2 * 3 * 32 * 48  # layers, tokens, top_k, matrices of an expert
