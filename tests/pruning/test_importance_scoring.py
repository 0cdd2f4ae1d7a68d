"""Cached, normalised scores, and what their halves say about them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from pruning.cache import Cache
from pruning.families import declared_layout
from pruning.grouping import find_units
from pruning.importance.base import ImportanceEstimator, Normalization
from pruning.importance.magnitude import Magnitude
from pruning.importance.normalization import normalizers
from pruning.importance.scoring import UnitScores, rank_agreement, score_units
from pruning.importance.taylor import Taylor, TaylorOrder
from pruning.units import UnitGroup


@pytest.fixture
def groups(llama: PreTrainedModel) -> dict[str, UnitGroup]:
    layout = declared_layout(llama)
    assert layout is not None
    return {name: group for name, group in find_units(llama, layout).items() if group.layer is not None}


def entries(cache: Cache) -> int:
    return len(list((cache.root / "scores").glob("*.json")))


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_cached_scores_are_the_scores(
    llama: PreTrainedModel, groups: dict[str, UnitGroup], tokens: torch.Tensor, cache: Cache
) -> None:
    direct = Taylor().score(llama, groups, tokens)
    computed, read = (score_units(Taylor(), llama, groups, tokens, cache) for _ in range(2))
    assert equal(computed.values, direct)
    assert equal(read.values, direct)
    assert computed.spread is not None
    assert read.spread is not None
    assert equal(read.spread, computed.spread)
    assert read.rank_agreement == computed.rank_agreement
    assert entries(cache) == 1
    score_units(Taylor(order=TaylorOrder.vector), llama, groups, tokens, cache)
    score_units(Taylor(), llama, groups, tokens[:3], cache)
    assert entries(cache) == 3


def test_a_second_run_computes_nothing(
    llama: PreTrainedModel,
    groups: dict[str, UnitGroup],
    tokens: torch.Tensor,
    cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = score_units(Taylor(), llama, groups, tokens, cache)
    monkeypatch.setattr(Taylor, "score", None)
    again = score_units(Taylor(normalization=Normalization.layer), llama, groups, tokens, cache)
    name = "layers.1.mlp"
    relative = first.values[name] / first.values[name].median()
    assert torch.allclose(again.values[name], relative * groups[name].params_per_unit)


def test_the_spread_and_the_agreement_come_from_the_two_halves(
    llama: PreTrainedModel, groups: dict[str, UnitGroup], tokens: torch.Tensor, cache: Cache
) -> None:
    tokens[3:5] = tokens[:2]  # random text agrees with itself by chance only
    found = score_units(Taylor(), llama, groups, tokens[:5], cache)
    assert found.spread is not None
    first, second = (Taylor().score(llama, groups, half) for half in (tokens[:2], tokens[2:5]))
    rhos = []
    for name in groups:
        relative = (first[name] - second[name]).abs() / (first[name] + second[name])
        assert torch.allclose(found.spread[name], relative * found.values[name])
        if groups[name].num_units >= 3:
            ranks = [values[name].argsort().argsort().double() for values in (first, second)]
            rhos.append(float(torch.corrcoef(torch.stack(ranks))[0, 1]))
    assert 4 < len(rhos) < len(groups)
    assert found.rank_agreement == pytest.approx(sum(rhos) / len(rhos), abs=1e-6)
    assert 0 < found.rank_agreement < 1


@pytest.mark.parametrize(("estimator", "count"), [(Taylor(), 1), (Taylor(halves=False), 6), (Magnitude(), 6)])
def test_without_halves_there_is_no_spread(
    llama: PreTrainedModel,
    groups: dict[str, UnitGroup],
    tokens: torch.Tensor,
    cache: Cache,
    estimator: ImportanceEstimator,
    count: int,
) -> None:
    found = score_units(estimator, llama, groups, tokens[:count], cache)
    assert found.spread is None
    assert found.rank_agreement is None


def test_no_samples_are_an_error(llama: PreTrainedModel, groups: dict[str, UnitGroup], cache: Cache) -> None:
    with pytest.raises(ValueError, match=r"calibration samples: .* got shape \(0, 8\)"):
        score_units(Taylor(), llama, groups, torch.ones(0, 8, dtype=torch.long), cache)


def test_agreement_leaves_out_groups_that_say_nothing() -> None:
    first = {"a": torch.tensor([1.0, 2, 3, 4]), "pair": torch.tensor([1.0, 2]), "flat": torch.ones(5)}
    second = {"a": torch.tensor([2.0, 1, 3, 4]), "pair": torch.tensor([2.0, 1]), "flat": torch.arange(5.0)}
    assert rank_agreement(first, second) == pytest.approx(0.8)  # 1 - 6 * (1 + 1) / (4 * 15)
    assert rank_agreement({"flat": first["flat"]}, second) is None
    assert rank_agreement({"flat": second["flat"]}, first) is None


def test_scores_and_spreads_are_normalised_after_the_cache(
    llama: PreTrainedModel, groups: dict[str, UnitGroup], tokens: torch.Tensor, cache: Cache
) -> None:
    def scored(normalization: Normalization) -> UnitScores:
        return score_units(replace(Taylor(), normalization=normalization), llama, groups, tokens, cache)

    plain = scored(Normalization.none)
    assert plain.spread is not None
    for normalization in (Normalization.layer, Normalization.zscore):
        found = scored(normalization)
        assert found.spread is not None
        for name, (shift, scale) in normalizers(normalization, groups, plain.values).items():
            assert scale != 1
            assert torch.allclose(found.values[name], (plain.values[name] - shift) / scale)
            assert torch.allclose(found.spread[name], plain.spread[name] / scale)
        assert found.rank_agreement == plain.rank_agreement
    assert entries(cache) == 1


def test_how_sure_the_scores_are_is_told_in_figures() -> None:
    scores = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([10.0])}
    spread = {"a": torch.tensor([0.5, 0.5]), "b": torch.tensor([1.0])}
    assert UnitScores(scores, spread, 0.75).metrics() == {
        "rank_agreement": 0.75,
        "relative_spread": pytest.approx((0.25 + 0.1) / 2),
    }
    assert UnitScores(scores, None, None).metrics() == {}
