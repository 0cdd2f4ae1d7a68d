"""Measured sensitivity: curves against models that are really cut, and what is made of them."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from pruning import sensitivity
from pruning.allocation import Allocator
from pruning.cache import Cache
from pruning.config import Allocation, PruningConfig, RatioOf, SensitivityConfig
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.importance.random import RandomImportance
from pruning.kinds import UnitKind as K
from pruning.model import count_parameters, fingerprint
from pruning.sensitivity import convex_minorant, marginal_rises, mean_loss, measure_curves
from pruning.surgery import cut
from pruning.units import PruningPlan, UnitGroup
from tests.pruning.allocate import config
from tests.zoo import MODELS, build


def groups_of(model: PreTrainedModel, *kinds: K) -> dict[str, UnitGroup]:
    units = find_units(model, find_layout(model))
    return {name: group for name, group in units.items() if not kinds or group.kind in kinds}


def random_scores(model: PreTrainedModel, groups: dict[str, UnitGroup]) -> dict[str, torch.Tensor]:
    return RandomImportance(seed=2).score(model, groups, None)


def slow_loss(model: PreTrainedModel, samples: torch.Tensor) -> float:
    """Return the mean next-token loss, sample by sample and token by token."""
    losses = []
    with torch.no_grad():
        for ids in samples:
            logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
            losses += [float(F.cross_entropy(logits[at], ids[at + 1])) for at in range(len(ids) - 1)]
    return sum(losses) / len(losses)


def without_lowest(scores: torch.Tensor, group: UnitGroup, count: int) -> tuple[int, ...]:
    """Return the units that stay when the lowest `count` of every run leave."""
    stays = []
    for start in range(0, group.num_units, group.run_length):
        run = sorted(range(start, start + group.run_length), key=lambda unit: float(scores[unit]))
        stays += run[count:]
    return tuple(sorted(stays))


@pytest.mark.parametrize("family", ["llama_gqa_tied", "olmo2", "mixtral", "gpt2"])
def test_a_curve_is_the_rise_in_loss_of_models_that_are_cut(family: str, tokens: torch.Tensor, cache: Cache) -> None:
    model = build(family)
    names = (
        "layers.1.attention",
        "layers.1.query_heads",
        "layers.2.mlp",
        "layers.1.experts",
        "layers.2.mlp_layer",
        "hidden",
    )
    groups = groups_of(model)
    chosen = {name: groups[name] for name in names if name in groups}
    scores = random_scores(model, chosen)
    removable = {name: max(1, group.run_length // 2) for name, group in chosen.items()}
    before = fingerprint(model)
    options = SensitivityConfig(fractions=[0.5], samples=None, batch_size=4)
    curves = measure_curves(options, model, chosen, scores, removable, tokens, cache)
    assert fingerprint(model) == before
    assert list(curves) == list(chosen)
    dense = slow_loss(model, tokens)
    for name, curve in curves.items():
        assert curve[0] == (0, 0.0)
        assert [count for count, _ in curve[1:]] == sorted({max(1, round(removable[name] / 2)), removable[name]})
        for count, rise in curve[1:]:
            model_cut = copy.deepcopy(model)
            kept = without_lowest(scores[name], chosen[name], count)
            cut(model_cut, find_layout(model), groups, PruningPlan({name: kept}, 0.0, 0.0))
            assert rise == pytest.approx(slow_loss(model_cut, tokens) - dense, abs=2e-5)


def test_the_loss_is_the_mean_over_all_tokens_whatever_the_batch(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    expected = slow_loss(llama, tokens)
    assert [mean_loss(llama, tokens, size) for size in (1, 4, 6)] == pytest.approx([expected] * 3, abs=1e-5)


def test_another_ratio_measures_nothing(
    llama: PreTrainedModel, tokens: torch.Tensor, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = find_layout(llama)

    def plan(ratio: float) -> PruningPlan:
        options = config(ratio=ratio, allocation=Allocation.sensitivity)
        allocator = Allocator(options, llama, layout, cache)
        groups = allocator.touched(find_units(llama, layout))
        return allocator.plan(llama, groups, random_scores(llama, groups), ratio, tokens)

    first = plan(0.1)
    monkeypatch.setattr(sensitivity, "mean_loss", None)
    assert plan(0.1) == first
    assert plan(0.2).ratio_reached == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize("of", [RatioOf.total, RatioOf.blocks, RatioOf.macs])
def test_the_group_that_the_loss_does_not_need_goes_first(
    llama: PreTrainedModel, tokens: torch.Tensor, cache: Cache, of: RatioOf
) -> None:
    with torch.no_grad():
        llama.model.layers[2].mlp.down_proj.weight.zero_()
    # of text that it writes itself, the loss rises with whatever else leaves
    samples = llama.generate(tokens[:, :4], max_new_tokens=20, min_new_tokens=20, do_sample=False)
    left = {}
    for allocation in (Allocation.sensitivity, Allocation["global"]):
        options = config(ratio=0.15, ratio_of=of, allocation=allocation)
        allocator = Allocator(options, llama, find_layout(llama), cache)
        groups = allocator.touched(groups_of(llama))
        scores = {name: torch.ones(group.num_units) for name, group in groups.items()}
        scores["layers.2.mlp"] *= 1000  # scores say nothing across groups
        kept = allocator.plan(llama, groups, scores, 0.15, samples).kept
        left[allocation.name] = len(kept.get("layers.2.mlp", range(48)))
    assert left["global"] == 48
    assert left["sensitivity"] < 12


def test_only_the_order_of_the_scores_matters(llama: PreTrainedModel, tokens: torch.Tensor, cache: Cache) -> None:
    allocator = Allocator(config(ratio=0.15, allocation=Allocation.sensitivity), llama, find_layout(llama), cache)
    groups = allocator.touched(groups_of(llama))
    scores = random_scores(llama, groups)
    changed = {name: values.double().exp() * (7 if "mlp" in name else 0.01) for name, values in scores.items()}
    plans = [allocator.plan(llama, groups, values, 0.15, tokens) for values in (scores, changed)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("family", sorted(MODELS))
def test_every_family_is_allocated_by_sensitivity(family: str, tokens: torch.Tensor, cache: Cache) -> None:
    model = build(family)
    layout = find_layout(model)
    kinds = {group.kind for group in groups_of(model).values()}
    wanted = [kind for kind in (K.kv_group, K.query_head, K.mlp_channel, K.expert, K.mlp_layer) if kind in kinds]
    options = PruningConfig(
        ratio=0.12,
        structures=wanted,
        allocation=Allocation.sensitivity,
        sensitivity=SensitivityConfig(fractions=[0.5], samples=2),
        protect_first=1,
        protect_last=1,
    )
    allocator = Allocator(options, model, layout, cache)
    groups = allocator.touched(groups_of(model))
    before = count_parameters(model)
    plan = allocator.plan(model, groups, random_scores(model, groups), 0.12, tokens)
    cut(model, layout, groups, plan)
    assert plan.ratio_reached == pytest.approx(1 - count_parameters(model) / before)
    assert plan.ratio_reached == pytest.approx(0.12, abs=5e-3)
    assert bool(model(input_ids=tokens).logits.isfinite().all())


def test_a_quadratic_rise_is_interpolated_exactly() -> None:
    curve = [(count, 0.003 * count**2) for count in (0, 10, 20, 40)]
    expected = [0.003 * (2 * unit + 1) for unit in range(48)]
    assert marginal_rises(curve, 48).tolist() == pytest.approx(expected)


def test_a_straight_rise_costs_every_unit_the_same() -> None:
    assert marginal_rises([(0, 0.0), (5, 0.5)], 10).tolist() == pytest.approx([0.1] * 10)
    assert marginal_rises([(0, 0.0), (1, 0.25)], 1).tolist() == [0.25]


@pytest.mark.parametrize(
    "curve",
    [
        [(0, 0.0), (4, 0.5), (8, 0.1), (12, 3.0)],
        [(0, 0.0), (4, -0.2), (8, -0.1), (12, 0.4)],
        [(0, 0.0), (4, 1.0), (8, 1.1), (12, 1.15)],
        [(0, 0.0), (4, -1.0), (12, -2.0)],
    ],
    ids=["dips", "helps first", "flattens", "helps always"],
)
def test_costs_never_fall_and_are_never_negative(curve: list[tuple[int, float]]) -> None:
    rises = marginal_rises(curve, 16).tolist()
    assert len(rises) == 16
    assert min(rises) >= 0
    assert all(one <= other + 1e-12 for one, other in pairwise(rises))


def test_the_convex_minorant_is_the_highest_convex_function_below_the_points() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        points = [(place, float(torch.rand(1, generator=generator))) for place in range(8)]
        hull = dict(convex_minorant(points))
        for at, value in points:  # the lowest chord over a point is where the minorant is
            chords = [
                y0 + (y1 - y0) * (at - x0) / (x1 - x0)
                for x0, y0 in points
                for x1, y1 in points
                if x0 <= at <= x1 and x0 < x1
            ]
            minorant = min([value, *chords])
            if at in hull:
                assert hull[at] == pytest.approx(minorant)
            else:
                assert minorant <= value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fractions": [0.5, 1.0]}, r"pruning\.sensitivity\.fractions=\[0\.5, 1\.0\]: each must be in \(0, 1\)"),
        ({"samples": 0}, r"pruning\.sensitivity\.samples=0: must be at least 1"),
        ({"batch_size": 0}, r"pruning\.sensitivity\.batch_size=0: must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SensitivityConfig(**options)  # type: ignore[arg-type]
