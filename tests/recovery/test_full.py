"""Full fine-tuning: what it trains, what it leaves, and what is kept of it."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from pruning.cache import Cache
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.model import fingerprint
from recovery.full import WEIGHTS, FullFineTuning
from recovery.targets import cut_maps
from tests.recovery.trainings import SMALL, loss, recover, text


def values(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.named_parameters()}


def changed(model: PreTrainedModel, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}


def test_the_maps_that_pruning_may_cut_are_trained_and_nothing_else(llama: PreTrainedModel, cache: Cache) -> None:
    groups = find_units(llama, find_layout(llama))
    maps = cut_maps(llama, {"layers.2.mlp": groups["layers.2.mlp"], "layers.0.attention": groups["layers.0.attention"]})
    wanted = {f"model.layers.2.mlp.{name}_proj" for name in ("gate", "up", "down")}
    wanted |= {f"model.layers.0.self_attn.{name}_proj" for name in "qkvo"}
    assert set(maps) == wanted
    before, first = values(llama), loss(llama, text(FullFineTuning(**SMALL)))
    report, _ = recover(llama, FullFineTuning(**SMALL), cache, cut_maps=maps)
    assert changed(llama, before) == {f"{name}.weight" for name in maps}
    assert loss(llama, text(FullFineTuning(**SMALL))) < first - 0.3
    assert report.trained_parameters == sum(llama.get_submodule(name).weight.numel() for name in maps)
    assert report.adapter is None
    assert all(weight.requires_grad for weight in llama.parameters())


def test_chosen_maps_and_all_of_them(llama: PreTrainedModel, cache: Cache) -> None:
    before = values(llama)
    recover(llama, FullFineTuning(**SMALL | {"steps": 1}, target_modules=["down_proj"]), cache, cut_maps=["model"])
    assert changed(llama, before) == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(4)}
    before = values(llama)
    recover(llama, FullFineTuning(**SMALL | {"steps": 1}), cache)
    assert changed(llama, before) == {name for name in before if "_proj." in name}


def test_from_the_cache_it_is_the_same_to_the_last_bit(llama: PreTrainedModel, cache: Cache) -> None:
    twin = copy.deepcopy(llama)
    assert recover(llama, FullFineTuning(**SMALL), cache) == recover(twin, FullFineTuning(**SMALL), cache)
    assert fingerprint(llama) == fingerprint(twin)
    (kept,) = (cache.root / "fine_tuned").glob(f"*/{WEIGHTS}")
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in load_file(kept)} == {
        f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")
    }


def test_bfloat16_weights_are_float32_while_they_are_trained(llama: PreTrainedModel, cache: Cache) -> None:
    llama.to(torch.bfloat16)
    before, first = values(llama), loss(llama, text(FullFineTuning(**SMALL)))
    tiny = FullFineTuning(**SMALL | {"learning_rate": 1e-4, "steps": 40, "scheduler": "constant"}, watch_every=20)
    report, _ = recover(llama, tiny, cache, watched={"train": text(FullFineTuning(**SMALL))})
    assert {weight.dtype for weight in llama.parameters()} == {torch.bfloat16}
    # each step moves a weight of 0.1 by 1e-4, less than bfloat16 can show; forty of them show
    assert len(changed(llama, before)) == 28
    assert loss(llama, text(FullFineTuning(**SMALL))) < first - 0.05
    assert report.trajectory[-1]["train/loss"] < report.trajectory[0]["train/loss"] - 0.05


def test_float16_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"model\.dtype=float16"):
        FullFineTuning(**SMALL).check_model(llama.half())
