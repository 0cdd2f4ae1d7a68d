"""Moments of linear maps' inputs: what they are, how they are kept, and that the model is left as it was."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from pruning.cache import Cache
from pruning.compensation.base import CalibratedCompensation
from pruning.compensation.bias import BiasCompensation
from pruning.compensation.least_squares import LeastSquares
from pruning.compensation.moments import (
    StoredMoments,
    input_moments,
    kept_inputs,
    moments_in_passing,
    readers_of,
)
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.importance import activations
from pruning.importance.base import CalibratedImportance
from pruning.importance.taylor import Taylor
from pruning.importance.unit_mask import Labels, UnitMask
from pruning.units import PruningPlan, UnitGroup, UnitKind
from tests.pruning.compensate import HEADS, TEXT, half_plan
from tests.pruning.test_importance import state_of
from tests.pruning.test_importance_activations import inputs_of_reader
from tests.zoo import MODELS, build


def groups_of(model: PreTrainedModel) -> dict[str, UnitGroup]:
    return find_units(model, find_layout(model))


def passes_of(model: PreTrainedModel) -> Counter[str]:
    """Count the samples that go through the decoder, and the calls of the head."""
    counts: Counter[str] = Counter()
    head = model.get_output_embeddings()
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: counts.update(samples=len(inputs[0])))
    head.register_forward_hook(lambda *_: counts.update(head=1))
    return counts


@pytest.mark.parametrize("family", MODELS)
def test_moments_are_those_of_the_inputs_and_the_head_does_not_run(family: str, cache: Cache) -> None:
    model = build(family)
    groups = groups_of(model)
    readers = set(readers_of(groups).values())
    assert {group.kind for group in groups.values() if group.name in readers_of(groups)} <= set(HEADS)
    inputs = {reader: inputs_of_reader(model, reader, TEXT) for reader in readers}
    before = state_of(model)
    counts = passes_of(model)
    moments = input_moments(model, groups, TEXT, cache, batch_size=5)
    whole = (
        {"head": 3} if model.base_model is model else {}
    )  # a model that names no part without the head runs as a whole
    assert counts == {"samples": len(TEXT)} | whole
    for hooked in (model.get_input_embeddings(), model.get_output_embeddings()):
        hooked._forward_hooks.clear()
    assert state_of(model) == before
    for reader, x in inputs.items():
        found = moments.of(reader)
        assert found.mean.dtype == torch.float64
        assert found.second.dtype == torch.float32
        assert torch.allclose(found.mean, x.mean(dim=0), rtol=1e-4, atol=1e-5)
        scale = float(x.square().mean())
        assert torch.allclose(found.second.double(), x.T @ x / len(x), rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("strip", [1, 7, 1000])
def test_second_moments_summed_in_strips_are_whole_and_symmetric(
    strip: int, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "STRIP", strip)
    model = build("llama_gqa_tied")
    reader = next(iter(readers_of(groups_of(model)).values()))
    x = inputs_of_reader(model, reader, TEXT)
    found = input_moments(model, groups_of(model), TEXT, cache, batch_size=5).of(reader).second
    assert torch.equal(found, found.T)
    assert torch.allclose(found.double(), x.T @ x / len(x), rtol=1e-3, atol=1e-5 * float(x.square().mean()))


@pytest.mark.parametrize("family", ["llama_gqa_tied", "gpt2", "opt", "qwen3_moe"])
def test_batches_and_layers_at_once_do_not_matter(family: str, tmp_path: Path) -> None:
    model = build(family)
    groups = groups_of(model)
    readers = set(readers_of(groups).values())

    def moments(name: str, batch_size: int | None, layers_at_once: int | None) -> StoredMoments:
        return input_moments(model, groups, TEXT, Cache(tmp_path / name), batch_size, layers_at_once)

    whole = moments("whole", None, None)
    for index, sizes in enumerate([(1, None), (5, 3), (None, 1), (100, 100)]):
        other = moments(str(index), *sizes)
        check_same(other, whole, readers)


def check_same(found: StoredMoments, expected: StoredMoments, readers: set[str]) -> None:
    """Assert that moments are the same up to rounding."""
    for reader in readers:
        ours, theirs = found.of(reader), expected.of(reader)
        assert torch.allclose(ours.mean, theirs.mean, rtol=1e-5, atol=1e-6)
        scale = float(theirs.second.diagonal().mean())
        assert torch.allclose(ours.second, theirs.second, rtol=1e-4, atol=1e-6 * scale)


def test_layers_at_once_is_the_price_in_passes(llama: PreTrainedModel, cache: Cache) -> None:
    counts = passes_of(llama)
    input_moments(llama, groups_of(llama), TEXT, cache, 4, layers_at_once=3)
    assert counts == {"samples": 2 * len(TEXT)}  # four layers: three, then one


@pytest.mark.parametrize("first", [LeastSquares(batch_size=4), BiasCompensation(batch_size=4)])
def test_one_pass_serves_every_plan_and_compensation(
    llama: PreTrainedModel, cache: Cache, first: CalibratedCompensation
) -> None:
    groups = groups_of(llama)
    plans = [half_plan(llama), PruningPlan({"layers.2.mlp": (4, 9, 30)}, 0.2, 0.2)]
    counts = passes_of(llama)
    first.corrections(llama, groups, plans[0], TEXT, cache)
    assert counts.pop("samples") == len(TEXT)
    for other in (LeastSquares(ridge=0.5, batch_size=12), BiasCompensation(layers_at_once=1)):
        for plan in plans:
            assert other.corrections(llama, groups, plan, TEXT, cache)
    assert not counts
    first.corrections(llama, groups, plans[0], TEXT.flip(1), cache)
    with torch.no_grad():
        llama.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    first.corrections(llama, groups, plans[0], TEXT, cache)
    assert counts["samples"] == 2 * len(TEXT)


def read_groups_of(model: PreTrainedModel) -> dict[str, UnitGroup]:
    """The groups whose units a linear map reads."""
    groups = groups_of(model)
    return {name: groups[name] for name in readers_of(groups)}


SCORED = 5
"""Of the samples in TEXT, those that the units are scored on."""


@pytest.mark.parametrize(
    "estimator",
    [
        UnitMask(batch_size=2),
        UnitMask(batch_size=2, checkpointing=True),
        UnitMask(labels=Labels.model),
        Taylor(batch_size=3),
    ],
)
@pytest.mark.parametrize("scorings", [1, 2])
def test_moments_of_scored_samples_are_taken_as_they_pass_by(
    llama: PreTrainedModel, tmp_path: Path, estimator: CalibratedImportance, scorings: int
) -> None:
    groups, cache = read_groups_of(llama), Cache(tmp_path / "passing")
    before = state_of(llama)
    with moments_in_passing(llama, groups, TEXT[:SCORED], cache):
        for samples in (TEXT[:SCORED], TEXT[: SCORED // 2])[:scorings]:
            estimator.score(llama, groups, samples)
    assert state_of(llama) == before
    counts = passes_of(llama)
    found = input_moments(llama, groups, TEXT, cache, batch_size=4, scored=SCORED)
    assert counts == {"samples": len(TEXT) - SCORED}
    expected = input_moments(llama, groups, TEXT, Cache(tmp_path / "whole"), batch_size=4)
    check_same(found, expected, set(readers_of(groups).values()))


def test_passes_over_other_or_fewer_samples_keep_no_moments(llama: PreTrainedModel, cache: Cache) -> None:
    groups = read_groups_of(llama)
    with moments_in_passing(llama, groups, TEXT[:SCORED], cache):
        UnitMask().score(llama, groups, TEXT[: SCORED - 1])
    with moments_in_passing(llama, groups, TEXT[:SCORED], cache):
        pass
    counts = passes_of(llama)
    input_moments(llama, groups, TEXT[:SCORED], cache)
    assert counts["samples"] == SCORED


@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_entry_is_computed_again(llama: PreTrainedModel, cache: Cache, damage: str) -> None:
    groups = groups_of(llama)
    expected = copy.deepcopy(input_moments(llama, groups, TEXT, cache, 4).of("model.layers.2.mlp.down_proj"))
    (file,) = cache.root.rglob("model.layers.2.mlp.down_proj.safetensors")
    content = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content[:-10] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    counts = passes_of(llama)
    found = input_moments(llama, groups, TEXT, cache, 4).of("model.layers.2.mlp.down_proj")
    assert counts == {"samples": len(TEXT)}
    assert torch.equal(found.second, expected.second)
    assert torch.equal(found.mean, expected.mean)


def test_the_model_is_restored_when_the_pass_fails(llama: PreTrainedModel, cache: Cache) -> None:
    llama.train()
    before = state_of(llama)
    wrong = TEXT.clone()
    wrong[7, 3] = 9999  # no such token: the second batch fails
    with pytest.raises(IndexError):
        input_moments(llama, groups_of(llama), wrong, cache, 6)
    assert state_of(llama) == before
    assert not list(cache.root.rglob("*.safetensors"))


def test_kept_inputs_are_those_that_no_chosen_unit_owns(llama: PreTrainedModel) -> None:
    """Four KV heads of dimension 8 with two query heads each: 64 inputs of the output projection."""
    groups = groups_of(llama)
    kept = {
        "layers.1.attention": (0, 2, 3),
        "layers.1.query_heads": (0, 2, 3, 5, 7),
        "layers.2.mlp": (1, 40),
        "layers.3.attention_layer": (),
        "hidden": tuple(range(16)),
    }
    found = kept_inputs(llama, groups, PruningPlan(kept, 0.0, 0.0))
    heads = [head for head in range(8) if head in (0, 5, 7)]  # KV head 1 owns 2 and 3; 1, 4 and 6 leave on their own
    columns = [8 * head + place for head in heads for place in range(8)]
    assert {reader: values.nonzero().flatten().tolist() for reader, values in found.items()} == {
        "model.layers.1.self_attn.o_proj": columns,
        "model.layers.2.mlp.down_proj": [1, 40],
    }


def test_a_plan_that_does_not_fit_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"layers\.1\.mlp"):
        kept_inputs(llama, groups_of(llama), PruningPlan({"layers.1.mlp": (0, 99)}, 0.0, 0.0))


def test_readers_are_those_of_width_groups() -> None:
    groups = groups_of(build("qwen3_moe"))
    found = readers_of(groups)
    assert {groups[name].kind for name in found} == {UnitKind.kv_group, UnitKind.query_head, UnitKind.mlp_channel}
    assert "layers.0.expert_channels" not in found
    assert found["layers.1.mlp"] == "model.layers.1.mlp.down_proj"
