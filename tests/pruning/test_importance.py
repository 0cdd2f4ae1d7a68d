"""The laws that every estimator keeps, on every family of models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.families import declared_layout
from pruning.grouping import find_units
from pruning.importance.activation import ActivationImportance, ActivationMetric
from pruning.importance.base import Aggregation, CalibratedImportance, ImportanceEstimator, Needs
from pruning.importance.magnitude import Magnitude
from pruning.importance.random import RandomImportance
from pruning.importance.reconstruction import Reconstruction
from pruning.importance.taylor import Formulas, Taylor, TaylorOrder
from pruning.importance.unit_mask import MaskOrder, MaskUnit, UnitMask
from pruning.model import fingerprint
from pruning.units import UnitGroup, UnitKind, UnitSlice
from tests.conftest import MODELS, build

RULED_BY_WEIGHTS = [
    Magnitude(power=1),
    Magnitude(power=2, aggregation=Aggregation.mean),
    *(Taylor(order=order) for order in TaylorOrder),
]
RULED_BY_READERS = [
    UnitMask(order=MaskOrder.first),
    UnitMask(order=MaskOrder.fisher, per=MaskUnit.sequence),
    UnitMask(order=MaskOrder.fisher, per=MaskUnit.token),
    ActivationImportance(metric=ActivationMetric.wanda),
    ActivationImportance(metric=ActivationMetric.fluctuation),
    Reconstruction(),
]
LAWFUL = [*RULED_BY_WEIGHTS, *RULED_BY_READERS]
ESTIMATORS = [*LAWFUL, RandomImportance(), Taylor(formulas=Formulas.code)]
NORMALISED_OUTPUT = ("gemma2", "gemma3", "olmo2")
"""Families that normalise what attention and MLP put out, so that masks on it have no effect."""

MIXTURES = ("qwen3_moe", "mixtral")
"""Families whose code does not run in float64."""

families = pytest.mark.parametrize("family", sorted(MODELS))


def short(estimator: ImportanceEstimator) -> str:
    plain = {key: getattr(value, "value", value) for key, value in vars(estimator).items() if key in NAMED}
    return "-".join([type(estimator).__name__, *map(str, plain.values())])


NAMED = ("power", "aggregation", "order", "formulas", "per", "metric")


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(2, 258, (5, 12), generator=torch.Generator().manual_seed(0))


def scorable(model: PreTrainedModel, family: str, estimator: ImportanceEstimator) -> dict[str, UnitGroup]:
    layout = declared_layout(model)
    assert layout is not None
    groups = find_units(model, layout)
    if isinstance(estimator, UnitMask | ActivationImportance | Reconstruction):
        depth = isinstance(estimator, UnitMask) and family not in NORMALISED_OUTPUT
        groups = {name: g for name, g in groups.items() if g.readers and (depth or not g.kind.is_depth)}
    assert {UnitKind.kv_group} <= {group.kind for group in groups.values()}
    return groups


def widths_of(groups: dict[str, UnitGroup]) -> list[UnitGroup]:
    """The width groups of layer 2, and the hidden width."""
    return [group for group in groups.values() if group.layer in (2, None) and not group.kind.is_depth]


def state_of(model: PreTrainedModel) -> dict[str, object]:
    return {
        "weights": fingerprint(model),
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [id(parameter.grad) for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "own": [sorted(vars(module)) for module in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "gradient hooks": [len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()],
    }


@families
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=short)
def test_scores_fit_the_contract_and_the_model_is_untouched(
    family: str, tokens: torch.Tensor, estimator: ImportanceEstimator
) -> None:
    model = build(family)
    model.get_input_embeddings().weight.requires_grad_(False)
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    next(m for m in model.modules() if isinstance(m, nn.Linear)).train()
    groups = scorable(model, family, estimator)
    before = state_of(model)
    scores = estimator.score(model, groups, None if estimator.needs is Needs.weights else tokens)
    assert state_of(model) == before
    assert list(scores) == list(groups)
    for name, values in scores.items():
        assert values.shape == (groups[name].num_units,)
        assert values.dtype == torch.float32
        assert values.isfinite().all()
        assert values.device.type == "cpu"
        assert groups[name].num_units == 1 or len(values.unique()) > 1


def swap_units(model: PreTrainedModel, piece: UnitSlice, order: torch.Tensor) -> None:
    """Put unit order[u] where unit u was."""
    with torch.no_grad():
        front = model.get_parameter(piece.parameter).movedim(piece.dims, tuple(range(len(piece.dims))))
        rows = front.flatten(0, len(piece.dims) - 1).clone()
        rows[piece.indices.flatten()] = rows[piece.indices[order].flatten()]
        front.copy_(rows.view(front.shape))


@families
@pytest.mark.parametrize("estimator", LAWFUL, ids=short)
def test_permuting_units_permutes_scores(family: str, tokens: torch.Tensor, estimator: ImportanceEstimator) -> None:
    model = build(family)
    if family not in MIXTURES:
        model.double()
    groups = scorable(model, family, estimator)
    before = estimator.score(model, groups, tokens)
    has_alibi = family in ("bloom", "falcon_alibi")
    for group in widths_of(groups):
        if has_alibi and group.kind is UnitKind.kv_group and estimator.needs is not Needs.weights:
            continue  # every head looks at other distances, so a head elsewhere is another head
        length = group.num_units // group.parts
        runs = torch.arange(group.num_units).view(group.parts, length)
        order = runs[:, torch.randperm(length, generator=torch.Generator().manual_seed(3))].flatten()
        for piece in group.slices:
            swap_units(model, piece, order)
        after = estimator.score(model, groups, tokens)
        before[group.name] = before[group.name][order]
        changed = {UnitKind.kv_group: UnitKind.query_head, UnitKind.expert: UnitKind.mlp_channel}.get(group.kind)
        for name, values in after.items():
            if groups[name].layer == group.layer and groups[name].kind is changed:
                continue  # these units lie inside those that moved
            scale = before[name].abs().max()
            assert torch.allclose(values, before[name], rtol=1e-3, atol=1e-5 * float(scale)), (group.name, name)
        before = after


@families
@pytest.mark.parametrize("estimator", LAWFUL, ids=short)
def test_a_unit_of_zero_weights_scores_zero(family: str, tokens: torch.Tensor, estimator: ImportanceEstimator) -> None:
    model = build(family)
    groups = scorable(model, family, estimator)
    chosen = [group for group in widths_of(groups) if group.kind is not UnitKind.hidden and group.num_units > 1]
    with torch.no_grad():
        for group in chosen:
            for piece in group.slices:
                front = model.get_parameter(piece.parameter).movedim(piece.dims, tuple(range(len(piece.dims))))
                rows = front.flatten(0, len(piece.dims) - 1).clone()
                rows[piece.indices[1]] = 0
                front.copy_(rows.view(front.shape))
    groups = {group.name: group for group in chosen}
    for values in estimator.score(model, groups, tokens).values():
        assert values[1] == 0
        assert (values > 0).any()


SPLIT = [
    *(Taylor(order=order) for order in TaylorOrder),
    Taylor(formulas=Formulas.code, order=TaylorOrder.mixed),
    *RULED_BY_READERS,
]


@pytest.mark.parametrize("family", ["llama_gqa_tied", "opt", "qwen3_moe"])
@pytest.mark.parametrize("estimator", SPLIT, ids=short)
def test_batches_and_rounds_do_not_change_scores(
    family: str, tokens: torch.Tensor, estimator: CalibratedImportance
) -> None:
    model = build(family)
    groups = scorable(model, family, estimator)
    whole = estimator.score(model, groups, tokens)
    variants = [replace(estimator, batch_size=1), replace(estimator, batch_size=2)]
    if isinstance(estimator, Taylor | Reconstruction):
        variants += [replace(estimator, layers_at_once=1), replace(estimator, batch_size=3, layers_at_once=3)]
    for variant in variants:
        for name, values in variant.score(model, groups, tokens).items():
            assert torch.allclose(values, whole[name], rtol=1e-3, atol=1e-5 * float(whole[name].abs().max()))


@pytest.mark.parametrize("family", sorted(set(MODELS) - {"baichuan", "chatglm"}))
@pytest.mark.parametrize("estimator", [Taylor(), Taylor(order=TaylorOrder.mixed), UnitMask()], ids=short)
def test_checkpointing_computes_layers_twice_and_changes_nothing(
    family: str, tokens: torch.Tensor, estimator: Taylor | UnitMask
) -> None:
    if isinstance(estimator, Taylor):
        estimator = replace(
            estimator, layers_at_once=100
        )  # one round: below the first layer of a round nothing is kept
    model = build(family)
    groups = scorable(model, family, estimator)
    layout = declared_layout(model)
    assert layout is not None
    attention = model.get_submodule(f"{layout.layers}.2.{layout.attention.module}")
    calls = []
    attention.register_forward_pre_hook(lambda *_: calls.append(1))
    plain, once = estimator.score(model, groups, tokens), len(calls)
    again = replace(estimator, checkpointing=True).score(model, groups, tokens)
    assert len(calls) == 3 * once
    for name, values in again.items():
        assert torch.allclose(values, plain[name], rtol=1e-4, atol=1e-6 * float(plain[name].abs().max()))


def test_random_scores_depend_on_the_seed_alone(llama: PreTrainedModel) -> None:
    groups = scorable(llama, "llama_gqa_tied", RandomImportance())
    first, again, other = (RandomImportance(seed=s).score(llama, groups, None)["layers.0.mlp"] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
