"""What an allocation refuses, before any work and with what is allowed."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from pruning.allocation import Allocator
from pruning.families import find_layout
from pruning.kinds import UnitKind as K
from tests.pruning.test_allocation import config, prune


@pytest.mark.parametrize("ratio", [0.6, 0.99])
def test_an_unreachable_ratio_is_refused_and_says_what_is_reachable(llama: PreTrainedModel, ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"pruning\.ratio={ratio}.*must be 0 or in \[.*, 0\.\d+\]"):
        Allocator(config(ratio=ratio), llama, find_layout(llama))


def test_the_highest_reachable_ratio_it_names_is_reachable(llama: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="cannot be reached") as error:
        Allocator(config(ratio=0.9), llama, find_layout(llama))
    highest = float(str(error.value).split("[")[1].split("]")[0].split(",")[1])
    (plan,) = prune(llama, config(ratio=highest))
    assert plan.ratio_reached == pytest.approx(highest, abs=2e-3)


def test_protecting_every_layer_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"pruning\.protect_first=3.*all 4 layers"):
        Allocator(config(protect_first=3), llama, find_layout(llama))


def test_an_event_smaller_than_a_unit_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="smaller than one unit"):
        prune(llama, config(ratio=0.2), 0.1, 0.1001)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.5}, r"pruning\.ratio=1\.5: must be in \[0, 1\)"),
        ({"ratio": -0.1}, r"pruning\.ratio=-0\.1"),
        ({"min_units": 0}, r"pruning\.min_units=0: must be at least 1"),
        ({"structures": []}, r"pruning\.structures=\[\]: name at least one"),
        ({"attention_ratio": 1.0}, r"pruning\.attention_ratio=1\.0: must be in \[0, 1\)"),
        ({"layer_ratios": {"layers.1.mlp": -1}}, r"pruning\.layer_ratios\.layers\.1\.mlp=-1"),
        ({"round_to": 0}, r"pruning\.round_to=0: must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structures": [K.expert]}, "this model has no expert; it has .*kv_group"),
        ({"mlp_layers": [2, 7]}, r"pruning\.mlp_layers names the layers \[7\]; this model has layers 0 to 3"),
        ({"layer_ratios": {"layers.9.mlp": 0.1}}, r"pruning\.layer_ratios names \['layers\.9\.mlp'\]"),
        ({"attention_ratio": 0.9}, r"layers\.\d\.attention: a ratio of 0\.9 would remove 4 of its 4 units"),
    ],
)
def test_what_the_model_does_not_have_is_refused(
    llama: PreTrainedModel, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Allocator(config(ratio=0.1, **options), llama, find_layout(llama))
