"""Bias compensation: the formula, and that added biases go wherever the model goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.cache import Cache
from pruning.checkpoint import is_pruned, load_checkpoint, save_checkpoint
from pruning.compensation.bias import BiasCompensation
from pruning.compensation.moments import kept_inputs
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.kinds import UnitKind
from pruning.model import count_parameters
from pruning.surgery import cut
from pruning.units import PruningPlan
from tests.plans import half_of
from tests.pruning.compensate import TEXT, compensate_and_cut, half_plan
from tests.pruning.test_importance_activations import FAMILIES, inputs_of_reader, weight_of_reader
from tests.zoo import MODELS, build

BIAS = BiasCompensation(batch_size=5)
OWN_CLASS = [name for name in MODELS if name not in ("baichuan", "chatglm")]
"""Families whose code is in transformers."""


def readers_losing(model: PreTrainedModel, plan: PruningPlan) -> list[str]:
    return list(kept_inputs(model, find_units(model, find_layout(model)), plan))


def bias_of(model: PreTrainedModel, linear: str) -> torch.Tensor | None:
    return model.get_submodule(linear).bias


@pytest.mark.parametrize("family", [*FAMILIES, "falcon_multi_query", "olmo2", "chatglm"])
def test_the_bias_takes_over_what_leaves_contributed_on_average(family: str, cache: Cache) -> None:
    model = build(family)
    plan = half_plan(model)
    expected = {}
    for reader, kept in kept_inputs(model, find_units(model, find_layout(model)), plan).items():
        x, weight, bias = inputs_of_reader(model, reader, TEXT), weight_of_reader(model, reader), bias_of(model, reader)
        expected[reader] = torch.zeros(len(weight)) if bias is None else bias.detach().double().clone()
        for unit in (~kept).nonzero().flatten().tolist():
            expected[reader] = expected[reader] + weight[:, unit] * x[:, unit].mean()
    compensate_and_cut(model, BIAS, cache)
    assert expected
    for reader, wanted in expected.items():
        found = bias_of(model, reader)
        assert isinstance(found, torch.nn.Parameter)
        assert found.requires_grad
        assert torch.allclose(found.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_the_mean_output_on_the_calibration_text_is_kept(cache: Cache) -> None:
    model = build("llama_gqa_tied")
    reader = "model.layers.1.mlp.down_proj"
    plan = half_plan(model, (UnitKind.mlp_channel,))
    means = []
    model.get_submodule(reader).register_forward_hook(
        lambda module, inputs, output: means.append(output.detach().double().mean(dim=(0, 1)))
    )
    model(TEXT)
    before = means.pop()
    compensate_and_cut(model, BIAS, cache, plan)
    means.clear()
    model(TEXT)
    assert torch.allclose(means[0], before, atol=1e-5 * float(before.abs().max()))


@pytest.mark.parametrize("family", OWN_CLASS)
def test_added_biases_are_saved_and_loaded(
    family: str, tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor, tmp_path: Path, cache: Cache
) -> None:
    model = build(family)
    corrections = compensate_and_cut(model, BIAS, cache)
    save_checkpoint(model, tokenizer, tmp_path / "model")
    again = load_checkpoint(tmp_path / "model", torch.float32)
    assert all(bias_of(again, reader) is not None for reader in corrections)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_equal_widths_with_added_biases_load_without_us(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor, tmp_path: Path, cache: Cache
) -> None:
    """Its ordinary class has no place for them, so the modeling file beside the weights makes it."""
    groups = find_units(llama, find_layout(llama))
    channels = {name: tuple(range(24)) for name, group in groups.items() if group.kind is UnitKind.mlp_channel}
    compensate_and_cut(llama, BIAS, cache, PruningPlan(channels, 0.1, 0.1))
    assert is_pruned(llama.config)
    save_checkpoint(llama, tokenizer, tmp_path / "model")
    torch.save(tokens, tmp_path / "tokens.pt")
    script = f"""
import sys, torch
from transformers import AutoModelForCausalLM
tokens = torch.load({str(tmp_path / "tokens.pt")!r})
for folder in ("model", "again"):
    model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r} + "/" + folder, trust_remote_code=True)
    model.save_pretrained({str(tmp_path)!r} + "/again")
    torch.save(model(tokens).logits, folder + ".pt")
assert not any(name.startswith("pruning") for name in sys.modules)
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment.pop("PYTHONPATH", None)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    for name in ("model.pt", "again.pt"):
        assert torch.equal(torch.load(tmp_path / name), llama(tokens).logits)


@pytest.mark.parametrize("family", ["llama_gqa_tied", "phi3", "opt", "qwen3_moe"])
def test_a_second_event_adds_to_the_bias_of_the_first(
    family: str, tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor, tmp_path: Path, cache: Cache
) -> None:
    model = build(family)
    compensate_and_cut(model, BIAS, cache)
    plan = half_plan(model)
    before = {reader: bias_of(model, reader).detach().clone() for reader in readers_losing(model, plan)}  # type: ignore[union-attr]
    sizes = count_parameters(model)
    corrections = compensate_and_cut(model, BIAS, cache, plan)
    assert count_parameters(model) < sizes
    for reader, correction in corrections.items():
        found, added = bias_of(model, reader), correction.added_bias
        assert found is not None
        assert added is not None
        assert torch.allclose(found.double(), before[reader].double() + added, atol=1e-6)
    save_checkpoint(model, tokenizer, tmp_path / "model")
    assert torch.equal(load_checkpoint(tmp_path / "model", torch.float32)(tokens).logits, model(tokens).logits)


def test_hidden_width_is_refused_while_biases_are_added(llama: PreTrainedModel) -> None:
    groups = find_units(llama, find_layout(llama))
    with pytest.raises(ValueError, match=r"compensation=bias: cannot be used when .*hidden; use compensation=least_"):
        BIAS.check(groups)
    BIAS.check({name: group for name, group in groups.items() if group.kind is not UnitKind.hidden})


def test_hidden_width_is_cut_from_biases_that_are_there(
    llama: PreTrainedModel, tokens: torch.Tensor, cache: Cache
) -> None:
    from pruning.masking import masked
    from pruning.units import removed_units

    compensate_and_cut(llama, BIAS, cache)
    groups = find_units(llama, find_layout(llama))
    plan = half_of(groups, (UnitKind.hidden,))
    with torch.no_grad():
        with masked(llama, groups, removed_units(plan, groups)):
            expected = llama(tokens).logits
        cut(llama, find_layout(llama), groups, plan)
        assert torch.allclose(llama(tokens).logits, expected, atol=2e-5)
    assert bias_of(llama, "model.layers.1.mlp.down_proj").shape == (16,)  # type: ignore[union-attr]


def test_recovery_leaves_added_biases_as_they_are(llama: PreTrainedModel, tokens: torch.Tensor, cache: Cache) -> None:
    from recovery.lora import Lora
    from recovery.task import RecoveryTask

    corrections = compensate_and_cut(llama, BIAS, cache)
    names = [name for name, _ in llama.named_parameters()]
    before = {reader: bias_of(llama, reader).clone() for reader in corrections}  # type: ignore[union-attr]
    logits = llama(tokens).logits
    recovery = Lora(steps=2, batch_size=2, micro_batch_size=1, length=20, warmup_steps=1, learning_rate=1e-2)
    recovery.recover(llama, RecoveryTask(TEXT[:4], range(recovery.steps), 0, teacher=lambda: llama), cache, log=print)
    assert [name for name, _ in llama.named_parameters()] == names
    assert all(torch.equal(bias_of(llama, reader), values) for reader, values in before.items())  # type: ignore[arg-type]
    assert not torch.allclose(llama(tokens).logits, logits, atol=1e-3)


def test_padding_refuses_biases_that_the_class_does_not_have(cache: Cache, tokens: torch.Tensor) -> None:
    from pruning.export.padded import pad_to_equal_widths

    model, has_its_own = build("llama_gqa_tied"), build("llama_biased")
    for each in (model, has_its_own):
        compensate_and_cut(each, BIAS, cache)
    with pytest.raises(ValueError, match="cannot be padded to equal widths: .* biases that compensation=bias added"):
        pad_to_equal_widths(model, find_layout(model))
    padded = pad_to_equal_widths(has_its_own, find_layout(has_its_own))
    assert torch.allclose(padded(tokens).logits, has_its_own(tokens).logits, atol=2e-5)
