"""Every estimator against a slow, obvious computation, and the laws that all of them keep."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from pruning.cache import Cache
from pruning.families import find_layout, find_units
from pruning.importance.base import ImportanceEstimator
from pruning.importance.gradients import gradient_moments
from pruning.importance.magnitude import Magnitude
from pruning.importance.random import RandomImportance
from pruning.importance.scoring import score_units
from pruning.importance.taylor import Taylor, TaylorOrder
from pruning.model import fingerprint
from pruning.units import UnitGroup

ESTIMATORS = [
    Magnitude(power=1),
    Magnitude(power=2),
    RandomImportance(),
    *(Taylor(order=order, batch_size=2) for order in TaylorOrder),
]


def groups_of(model: PreTrainedModel) -> dict[str, UnitGroup]:
    return find_units(model, find_layout(model))


def gradients(model: PreTrainedModel, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradient of the mean next-token loss, the loss written out."""
    logits = model(tokens).logits[:, :-1].double()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))


def slow_scores(
    model: PreTrainedModel, groups: dict[str, UnitGroup], channel: Callable[[str, int, int], float]
) -> dict[str, torch.Tensor]:
    """Add up channel by channel, unit by unit, with no tensor shortcut."""
    return {
        name: torch.tensor(
            [
                sum(channel(piece.parameter, piece.dim, int(i)) for piece in group.slices for i in piece.indices[unit])
                for unit in range(group.num_units)
            ]
        )
        for name, group in groups.items()
        if group.layer == 1
    }


@pytest.mark.parametrize("order", list(TaylorOrder))
def test_taylor_is_the_formula(model: PreTrainedModel, tokens: torch.Tensor, order: TaylorOrder) -> None:
    groups = groups_of(model)
    mean = gradients(model, tokens)
    per_sample = [gradients(model, tokens[i : i + 1]) for i in range(len(tokens))]

    def channel(name: str, dim: int, index: int) -> float:
        w = model.get_parameter(name).detach().select(dim, index).double()
        g = mean[name].select(dim, index).double()
        fisher = sum(sample[name].select(dim, index).double() ** 2 for sample in per_sample) / len(per_sample)
        return {
            TaylorOrder.vector: (w * g).sum().abs(),
            TaylorOrder.first: (w * g).abs().sum(),
            TaylorOrder.second: (w**2 * fisher).sum(),
            TaylorOrder.mixed: (w * g - w**2 * fisher / 2).abs().sum(),
        }[order].item()

    expected = slow_scores(model, groups, channel)
    found = Taylor(order=order, batch_size=4).score(model, groups, tokens)
    for name, values in expected.items():
        assert torch.allclose(found[name], values.float(), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("power", [1, 2])
def test_magnitude_is_the_norm_of_the_coupled_weights(llama: PreTrainedModel, power: int) -> None:
    groups = groups_of(llama)

    def channel(name: str, dim: int, index: int) -> float:
        return (llama.get_parameter(name).detach().select(dim, index).double().abs() ** power).sum().item()

    found = Magnitude(power=power).score(llama, groups, None)
    for name, values in slow_scores(llama, groups, channel).items():
        assert torch.allclose(found[name], values.float() ** (1 / power), rtol=1e-4)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_scores_fit_the_contract_and_the_model_is_untouched(
    llama: PreTrainedModel, tokens: torch.Tensor, estimator: ImportanceEstimator
) -> None:
    groups = groups_of(llama)
    llama.model.embed_tokens.weight.requires_grad_(False)
    before, flags = fingerprint(llama), [p.requires_grad for p in llama.parameters()]
    scores = estimator.score(llama, groups, tokens)
    assert fingerprint(llama) == before
    assert [p.requires_grad for p in llama.parameters()] == flags
    assert all(p.grad is None for p in llama.parameters())
    assert set(scores) == set(groups)
    for name, values in scores.items():
        assert values.shape == (groups[name].num_units,)
        assert values.dtype == torch.float32
        assert values.isfinite().all()
        assert values.device.type == "cpu"


@pytest.mark.parametrize("estimator", [e for e in ESTIMATORS if not isinstance(e, RandomImportance)], ids=str)
def test_a_unit_of_zero_weights_scores_zero(
    llama: PreTrainedModel, tokens: torch.Tensor, estimator: ImportanceEstimator
) -> None:
    groups = groups_of(llama)
    with torch.no_grad():
        for piece in groups["layers.1.mlp"].slices:
            llama.get_parameter(piece.parameter).index_fill_(piece.dim, piece.indices[7], 0)
    assert estimator.score(llama, groups, tokens)["layers.1.mlp"][7] == 0


@pytest.mark.parametrize("estimator", [e for e in ESTIMATORS if not isinstance(e, RandomImportance)], ids=str)
def test_permuting_units_permutes_scores(
    llama: PreTrainedModel, tokens: torch.Tensor, estimator: ImportanceEstimator
) -> None:
    groups = groups_of(llama)
    before = estimator.score(llama, groups, tokens)
    group = groups["layers.2.attention"]
    order = torch.randperm(group.num_units, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for piece in group.slices:
            parameter = llama.get_parameter(piece.parameter)
            parameter.copy_(parameter.index_select(piece.dim, piece.indices[order].flatten()))
    after = estimator.score(llama, groups, tokens)
    assert torch.allclose(after[group.name], before[group.name][order], rtol=1e-3)
    assert torch.allclose(after["layers.1.mlp"], before["layers.1.mlp"], rtol=1e-3)


def test_batch_size_does_not_change_taylor(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    groups = groups_of(llama)
    one, all_at_once = (Taylor(batch_size=size).score(llama, groups, tokens) for size in (1, 6))
    for name, values in one.items():
        assert torch.allclose(values, all_at_once[name], rtol=1e-4)


def test_second_order_does_not_underflow_in_half_precision(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    half = copy.deepcopy(llama).bfloat16()
    with torch.no_grad():
        half.lm_head.weight.mul_(1e-3)  # gradients of the layers near 1e-5: their squares vanish in 16-bit floats
    groups = groups_of(half)
    scores = Taylor(order=TaylorOrder.second).score(half, groups, tokens)["layers.1.mlp"]
    assert (scores > 0).all()
    assert len(scores.unique()) == len(scores)


def test_a_parameter_without_a_gradient_is_an_error(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    llama.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    names = {"unused", "model.layers.0.mlp.up_proj.weight"}
    with pytest.raises(RuntimeError, match="unused"):
        gradient_moments(llama, names, tokens, batch_size=2, mean=True, mean_square=False)


def test_a_score_that_is_not_finite_is_an_error_naming_the_unit(llama: PreTrainedModel) -> None:
    llama.get_parameter("model.layers.2.mlp.up_proj.weight").data[5] = torch.inf
    with pytest.raises(ValueError, match=r"unit 5 of layers\.2\.mlp"):
        Magnitude().score(llama, groups_of(llama), None)


def test_random_scores_depend_on_the_seed_alone(llama: PreTrainedModel) -> None:
    groups = groups_of(llama)
    first, again, other = (RandomImportance(seed=s).score(llama, groups, None)["layers.0.mlp"] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_cached_scores_are_the_scores(llama: PreTrainedModel, tokens: torch.Tensor, cache: Cache) -> None:
    groups = groups_of(llama)
    direct = Taylor().score(llama, groups, tokens)
    for _ in range(2):
        cached = score_units(Taylor(), llama, groups, tokens, cache)
        assert all(torch.equal(cached[name], direct[name]) for name in groups)
    assert len(list((cache.root / "scores").glob("*.json"))) == 1
    score_units(Taylor(order=TaylorOrder.vector), llama, groups, tokens, cache)
    score_units(Taylor(), llama, groups, tokens[:3], cache)
    assert len(list((cache.root / "scores").glob("*.json"))) == 3
