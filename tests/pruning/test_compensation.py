"""The laws that every compensation keeps, on every family of models."""

from __future__ import annotations

from typing import NoReturn

import pytest
import torch
from transformers import PreTrainedModel

from pruning.cache import Cache
from pruning.compensation.apply import compensate, compensated, pruned_for_now
from pruning.compensation.base import Compensation, Correction, NoCompensation
from pruning.compensation.bias import BiasCompensation
from pruning.compensation.least_squares import LeastSquares
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.model import fingerprint
from pruning.rounds import sublayer_outputs
from pruning.surgery import cut
from pruning.units import PruningPlan
from tests.plans import STRUCTURES, half_of, removes_something
from tests.pruning.compensate import TEXT, corrections_of, half_plan
from tests.pruning.test_importance import state_of
from tests.zoo import MODELS, build

CALIBRATED = [LeastSquares(batch_size=5), BiasCompensation(batch_size=5)]
ALL = [NoCompensation(), *CALIBRATED]
CASES = [
    *((LeastSquares(), structure) for structure in ("heads", "width", "depth_and_width", "mixture")),
    (LeastSquares(gains=True, gain_samples=4), "heads"),
    *((BiasCompensation(), structure) for structure in ("heads", "query_head")),
]


def short(value: object) -> str:
    return value if isinstance(value, str) else type(value).__name__


@pytest.mark.parametrize(("compensation", "structure"), CASES, ids=short)
@pytest.mark.parametrize("family", MODELS)
def test_cut_gives_the_logits_of_masked_with_the_same_corrections(
    family: str, compensation: Compensation, structure: str, tokens: torch.Tensor, cache: Cache
) -> None:
    model = build(family)
    layout = find_layout(model)
    groups = find_units(model, layout)
    plan = half_of(groups, STRUCTURES[structure])
    if not removes_something(groups, plan):
        pytest.skip("this family has nothing of the kind to remove")
    before = state_of(model)
    so_far = compensation.corrections(model, groups, plan, TEXT, cache)
    corrections = compensation.finish(model, groups, plan, sublayer_outputs(model, layout), TEXT, so_far)
    assert state_of(model) == before
    with torch.no_grad():
        with pruned_for_now(model, groups, plan, {}):
            uncorrected = model(tokens).logits
        with pruned_for_now(model, groups, plan, corrections):
            expected = model(tokens).logits
        assert state_of(model) == before
        compensate(model, corrections)
        cut(model, layout, groups, plan)
        assert torch.allclose(model(tokens).logits, expected, atol=2e-5)
    assert bool(corrections) != torch.allclose(expected, uncorrected, atol=1e-3)


@pytest.mark.parametrize("family", MODELS)
def test_every_map_that_loses_inputs_is_corrected_and_no_other(family: str, cache: Cache) -> None:
    model = build(family)
    groups = find_units(model, find_layout(model))
    plan = half_plan(model)
    losing = {groups[name].readers[0] for name, kept in plan.kept.items() if groups[name].readers}
    for compensation in CALIBRATED:
        assert set(corrections_of(model, compensation, plan, cache)) == losing
    assert corrections_of(model, NoCompensation(), plan, cache) == {}


@pytest.mark.parametrize("compensation", CALIBRATED, ids=short)
def test_where_no_map_loses_inputs_nothing_is_computed(compensation: Compensation, cache: Cache) -> None:
    model = build("mixtral")
    groups = find_units(model, find_layout(model))
    whole = PruningPlan({name: tuple(range(group.num_units)) for name, group in groups.items()}, 0.0, 0.0)
    model.forward = model.base_model.forward = None  # type: ignore[method-assign, assignment]
    for plan in (PruningPlan({}, 0.0, 0.0), whole, half_of(groups, STRUCTURES["mixture"])):
        assert compensation.corrections(model, groups, plan, TEXT, cache) == {}


def test_nothing_removed_changes_not_one_bit(cache: Cache) -> None:
    from pruning.compensation.moments import input_moments

    model = build("llama_biased")
    groups = find_units(model, find_layout(model))
    reader = "model.layers.1.mlp.down_proj"
    weight = model.get_parameter(f"{reader}.weight").detach()
    moments = input_moments(model, groups, TEXT, cache).of(reader)
    kept = torch.ones(weight.shape[1], dtype=torch.bool)
    refitted = LeastSquares().correct(reader, weight, kept, moments).weight
    assert refitted is not None
    assert torch.equal(refitted, weight)
    assert refitted.data_ptr() != weight.data_ptr()
    added = BiasCompensation().correct(reader, weight, kept, moments).added_bias
    assert added is not None
    assert not added.any()


def fail_in(model: PreTrainedModel, whole: str) -> NoReturn:
    assert fingerprint(model) != whole
    raise RuntimeError("inside")


@pytest.mark.parametrize("family", ["llama_gqa_tied", "llama_biased", "gpt2", "olmo2", "falcon_grouped", "qwen3_moe"])
def test_the_model_is_restored_to_the_last_bit_when_the_block_fails(family: str, cache: Cache) -> None:
    model = build(family)
    groups = find_units(model, find_layout(model))
    plan = half_plan(model)
    next(model.parameters()).requires_grad_(False)
    before = state_of(model)
    for compensation in CALIBRATED:
        corrections = compensation.corrections(model, groups, plan, TEXT, cache)
        for block in (compensated(model, corrections), pruned_for_now(model, groups, plan, corrections)):
            with pytest.raises(RuntimeError, match="inside"), block:
                fail_in(model, str(before["weights"]))
            assert state_of(model) == before
    reader = next(iter(corrections))
    wrong = {**corrections, reader: Correction(weight=torch.zeros(1, 2, 3))}
    with pytest.raises(RuntimeError), compensated(model, wrong):
        pass
    assert state_of(model) == before


@pytest.mark.parametrize("compensation", CALIBRATED, ids=short)
def test_inputs_that_are_not_finite_are_refused(compensation: Compensation, cache: Cache) -> None:
    model = build("llama_gqa_tied")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[5] = torch.inf
    with pytest.raises(ValueError, match=r"the inputs of model\.layers\.1\.mlp\.down_proj are not finite.*dtype"):
        corrections_of(model, compensation, half_plan(model), cache)


@pytest.mark.parametrize("option", ["samples", "length", "batch_size", "layers_at_once"])
def test_counts_below_one_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=rf"compensation\.{option}=0: must be at least 1"):
        BiasCompensation(**{option: 0})
