"""Every family can be recovered: its linear maps are found, whatever they are called, and adapters are merged exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from pruning.cache import Cache
from pruning.layout import is_linear, weight_of
from pruning.model import fingerprint
from recovery.full import FullFineTuning
from recovery.lora import Lora, Quantization
from recovery.targets import linear_maps, shortest_endings
from tests.recovery.trainings import SMALL, loss, recover, text
from tests.zoo import build

SHORT = SMALL | {"steps": 3, "batch_size": 2, "micro_batch_size": 2, "length": 12, "learning_rate": 3e-2}


def test_every_family_is_trained_and_merged(model: PreTrainedModel, cache: Cache) -> None:
    blocks = text(Lora(**SHORT))
    names = [name for name, _ in model.named_parameters()]
    before, first = {name: weight.clone() for name, weight in model.named_parameters()}, fingerprint(model)
    report, _ = recover(model, Lora(**SHORT, watch_every=3), cache, watched={"train": blocks})
    assert [name for name, _ in model.named_parameters()] == names
    assert fingerprint(model) != first
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    head = model.get_output_embeddings()
    layers = {n for n, module in model.named_modules() if is_linear(module) and weight_of(module) is not head.weight}
    if model.config.model_type == "qwen3_moe":  # whose experts are not trained, nor the MLP that has their names
        layers = {name for name in layers if "mlp" not in name}
    assert changed == {f"{name}.weight" for name in layers}
    # the last scoring was of the adapters, this one is of the merged weights
    with torch.no_grad():
        logits = model(input_ids=blocks).logits[:, :-1]
    found = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), blocks[:, 1:].reshape(-1)).item()
    assert found == pytest.approx(report.trajectory[-1]["train/loss"], rel=1e-3)
    assert report.trajectory[-1]["train/loss"] < report.trajectory[0]["train/loss"]
    assert 0 <= report.merge_error < 1e-4


@pytest.mark.parametrize("options", [{"use_rslora": True, "r": 16}, {"use_dora": True}, {"target_modules": ["v_proj"]}])
def test_kinds_of_adapters(llama: PreTrainedModel, cache: Cache, options: dict) -> None:
    before = loss(llama, text(Lora(**SMALL)))
    report, _ = recover(llama, Lora(**SMALL, **options), cache)
    assert loss(llama, text(Lora(**SMALL))) < before - 0.1
    assert report.merge_error < 1e-4


def test_in_bfloat16_the_factors_are_float32_and_merging_is_as_good_as_it_can_be(
    llama: PreTrainedModel, cache: Cache
) -> None:
    llama.to(torch.bfloat16)
    before = copy.deepcopy(llama)
    report, _ = recover(llama, Lora(**SMALL), cache)
    assert {weight.dtype for weight in llama.parameters()} == {torch.bfloat16}
    from safetensors.torch import load_file

    factors = load_file(report.adapter / "adapter_model.safetensors")
    assert {factor.dtype for factor in factors.values()} == {torch.float32}
    name = "model.layers.1.mlp.up_proj"
    a, b = (factors[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
    exact = before.get_submodule(name).weight.float() + 16 / 8 * b @ a
    assert torch.equal(llama.get_submodule(name).weight, exact.to(torch.bfloat16))
    assert 0 < report.merge_error < 0.1


def test_checkpointing_changes_nothing_but_memory(llama: PreTrainedModel, cache: Cache) -> None:
    twin = copy.deepcopy(llama)
    recover(llama, Lora(**SMALL), cache)
    recover(twin, Lora(**SMALL, gradient_checkpointing=True), cache)
    assert fingerprint(llama) == fingerprint(twin)
    assert not twin.is_activation_checkpointing


def test_a_map_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"recovery\.target_modules: .* 'c_atn'; there are c_attn, c_proj, c_fc;"):
        Lora(target_modules=["c_atn"]).check_model(build("gpt2"))
    assert linear_maps(build("gpt2"), ["mlp.c_proj"]) == [f"transformer.h.{layer}.mlp.c_proj" for layer in range(4)]


def test_endings_are_short_where_that_is_unambiguous() -> None:
    llama, gpt2 = build("llama_mha"), build("gpt2")
    assert shortest_endings(llama, linear_maps(llama, ["q_proj", "up_proj"])) == ["q_proj", "up_proj"]
    only_mlp = linear_maps(gpt2, ["mlp.c_proj"])
    assert shortest_endings(gpt2, only_mlp) == only_mlp


def test_four_bits_need_a_gpu(llama: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"recovery\.quantize=nf4: needs an NVIDIA GPU"):
        Lora(quantize=Quantization.nf4).check_model(llama)


def test_adapters_trained_in_four_bits_are_merged_into_the_weights_as_they_were(
    llama: PreTrainedModel, cache: Cache
) -> None:
    pytest.importorskip("bitsandbytes")
    before = copy.deepcopy(llama)
    recovery = Lora(**SMALL, quantize=Quantization.nf4)
    first = loss(llama, text(recovery))
    report, _ = recover(llama, recovery, cache)
    assert loss(llama, text(recovery)) < first - 0.1
    assert report.merge_error < 1e-4
    difference = llama.model.layers[1].mlp.up_proj.weight - before.model.layers[1].mlp.up_proj.weight
    assert torch.linalg.matrix_rank(difference, rtol=1e-4) == recovery.r


def test_checkpointing_is_refused_where_a_model_does_not_have_it(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(llama), "supports_gradient_checkpointing", False)
    with pytest.raises(ValueError, match=r"recovery\.gradient_checkpointing=true"):
        FullFineTuning(gradient_checkpointing=True).check_model(llama)
