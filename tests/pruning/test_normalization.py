"""Normalised scores: what a ranking by score per parameter sees is a unit's place among those of its own group."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from pruning.families import declared_layout
from pruning.grouping import find_units
from pruning.importance.base import Normalization
from pruning.importance.normalization import normalizers
from pruning.units import UnitGroup, UnitKind


@pytest.fixture
def groups(llama: PreTrainedModel) -> dict[str, UnitGroup]:
    layout = declared_layout(llama)
    assert layout is not None
    return find_units(llama, layout)


@pytest.fixture
def scores(groups: dict[str, UnitGroup]) -> dict[str, torch.Tensor]:
    """Random scores whose scale and place differ from group to group."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (index + 1) * (5 + torch.rand(group.num_units, generator=generator))
        for index, (name, group) in enumerate(groups.items())
    }


def per_parameter(
    normalization: Normalization, groups: dict[str, UnitGroup], scores: dict[str, torch.Tensor], power: float = 1.0
) -> dict[str, torch.Tensor]:
    found = normalizers(normalization, groups, scores, power)
    return {name: (scores[name] - a) / b / groups[name].params_per_unit for name, (a, b) in found.items()}


def pooled(values: dict[str, torch.Tensor], groups: dict[str, UnitGroup], kind: UnitKind) -> torch.Tensor:
    return torch.cat([values[name] for name, group in groups.items() if group.kind is kind])


def test_layer_makes_the_median_of_every_group_one(
    groups: dict[str, UnitGroup], scores: dict[str, torch.Tensor]
) -> None:
    found = per_parameter(Normalization.layer, groups, scores)
    for name, group in groups.items():
        if not group.kind.is_depth:
            assert float(found[name].median()) == pytest.approx(1)
            assert torch.allclose(found[name], scores[name] / scores[name].median())


def test_one_unit_with_most_of_the_sum_does_not_make_the_others_of_its_group_cheap(
    groups: dict[str, UnitGroup], scores: dict[str, torch.Tensor]
) -> None:
    name = "layers.1.mlp"
    outlier = scores | {name: scores[name].clone().index_fill_(0, scores[name].argmax(), 1e6)}
    plain, changed = (per_parameter(Normalization.layer, groups, values)[name] for values in (scores, outlier))
    others = torch.arange(len(plain)) != scores[name].argmax()
    assert torch.allclose(plain[others], changed[others])


@pytest.mark.parametrize("power", [0.0, 0.4, 1.0])
def test_power_takes_out_that_power_of_the_difference_between_groups(
    groups: dict[str, UnitGroup], scores: dict[str, torch.Tensor], power: float
) -> None:
    found = per_parameter(Normalization.layer, groups, scores, power)
    plain = {name: values / groups[name].params_per_unit for name, values in scores.items()}
    for name in ("layers.0.mlp", "layers.3.attention"):
        assert torch.allclose(found[name], plain[name] / plain[name].median() ** power)


def test_zscore_makes_spread_one_and_place_the_same_in_every_group(
    groups: dict[str, UnitGroup], scores: dict[str, torch.Tensor]
) -> None:
    found = per_parameter(Normalization.zscore, groups, scores)
    wide = [name for name, group in groups.items() if not group.kind.is_depth]
    assert min(float(values.min()) for values in found.values()) == pytest.approx(0, abs=1e-5)
    means = {float(found[name].mean()) for name in wide}
    assert max(means) - min(means) < 1e-4
    assert [float(found[name].std(correction=0)) for name in wide] == pytest.approx([1] * len(wide), abs=1e-4)


@pytest.mark.parametrize("kind", [UnitKind.layer, UnitKind.attention_layer, UnitKind.mlp_layer])
def test_depth_is_compared_with_its_own_kind(
    groups: dict[str, UnitGroup], scores: dict[str, torch.Tensor], kind: UnitKind
) -> None:
    plain = pooled(scores, groups, kind)
    relative = pooled(per_parameter(Normalization.layer, groups, scores), groups, kind)
    assert torch.allclose(relative, plain / plain.median())
    standard = pooled(per_parameter(Normalization.zscore, groups, scores), groups, kind)
    assert float(standard.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_none_leaves_scores_alone(groups: dict[str, UnitGroup], scores: dict[str, torch.Tensor]) -> None:
    assert set(normalizers(Normalization.none, groups, scores).values()) == {(0.0, 1.0)}


@pytest.mark.parametrize("normalization", list(Normalization))
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_group_whose_scores_are_all_equal_is_not_divided_by_zero(
    groups: dict[str, UnitGroup], normalization: Normalization, value: float
) -> None:
    equal = {name: torch.full((group.num_units,), value) for name, group in groups.items()}
    found = per_parameter(normalization, groups, equal)
    assert all(bool(values.isfinite().all()) for values in found.values())


@pytest.mark.parametrize("normalization", [Normalization.layer, Normalization.zscore])
def test_the_scale_of_a_group_does_not_matter(
    groups: dict[str, UnitGroup], scores: dict[str, torch.Tensor], normalization: Normalization
) -> None:
    name = "layers.1.mlp"
    changed = scores | {name: 1000 * scores[name]}
    before, after = (per_parameter(normalization, groups, values)[name] for values in (scores, changed))
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-4)
