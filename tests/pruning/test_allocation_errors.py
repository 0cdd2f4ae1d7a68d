"""What an allocation refuses, before any work and with what is allowed."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from pruning.config import Allocation, RatioOf
from pruning.kinds import UnitKind as K
from tests.pruning.allocate import allocator_for, config, prune
from tests.zoo import build


@pytest.mark.parametrize("ratio", [0.6, 0.99])
def test_an_unreachable_ratio_is_refused_and_says_what_is_reachable(llama: PreTrainedModel, ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"pruning\.ratio={ratio}.*must be 0 or in \[.*, 0\.\d+\]"):
        allocator_for(llama, config(ratio=ratio))


def test_the_highest_reachable_ratio_it_names_is_reachable(llama: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="cannot be reached") as error:
        allocator_for(llama, config(ratio=0.9))
    highest = float(str(error.value).split("[")[1].split("]")[0].split(",")[1])
    (plan,) = prune(llama, config(ratio=highest))
    assert plan.ratio_reached == pytest.approx(highest, abs=2e-3)


def test_protecting_every_layer_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"pruning\.protect_first=3.*all 4 layers"):
        allocator_for(llama, config(protect_first=3))


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
        ({"macs_tokens": 0}, r"pruning\.macs_tokens=0: must be at least 1"),
        ({"protect_last": -1}, r"pruning\.protect_last=-1: must be at least 0"),
        (
            {"allocation": Allocation["global"], "ratio_of": RatioOf.units},
            r"pruning\.allocation=global: with pruning\.ratio_of=units .* use pruning\.allocation=uniform",
        ),
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
        allocator_for(llama, config(ratio=0.1, **options))


@pytest.mark.parametrize("of", [RatioOf.total, RatioOf.blocks, RatioOf.macs])
def test_a_model_of_which_no_unit_may_leave_is_refused(of: RatioOf) -> None:
    options = config(ratio=0.1, ratio_of=of, structures=[K.kv_group])
    with pytest.raises(ValueError, match=rf"pruning\.ratio=0\.1 \(of {of.name}\): no unit may leave"):
        allocator_for(build("falcon_multi_query"), options)  # one KV head a layer


def test_an_unreachable_share_of_multiply_accumulates_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"pruning\.ratio=0\.8 \(of macs\): cannot be reached"):
        allocator_for(llama, config(ratio=0.8, ratio_of=RatioOf.macs))
