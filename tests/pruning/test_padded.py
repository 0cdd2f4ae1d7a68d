"""Padding: the ordinary class loads a pruned model and computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from pruning.checkpoint import is_pruned, save_checkpoint
from pruning.export.__main__ import main
from pruning.export.padded import pad_to_equal_widths
from pruning.families import declared_layout
from pruning.grouping import find_units
from pruning.layout import layer_widths
from pruning.model import count_parameters
from pruning.surgery import cut
from tests.plans import STRUCTURES, half_of
from tests.zoo import MODELS, build

REFUSED = ("olmo2", "bloom", "falcon_alibi", "qwen3_moe", "mixtral")


@pytest.mark.parametrize("structure", ["heads", "attention_layer", "mlp_layer"])
@pytest.mark.parametrize("family", [name for name in MODELS if name not in REFUSED])
def test_a_padded_model_is_ordinary_and_computes_the_same(family: str, structure: str, tokens: torch.Tensor) -> None:
    model = build(family)
    layout = declared_layout(model)
    assert layout is not None
    groups = find_units(model, layout)
    cut(model, layout, groups, half_of(groups, STRUCTURES[structure]))
    padded = pad_to_equal_widths(model, layout)
    assert not is_pruned(padded.config)
    assert len(set(layer_widths(padded, layout))) == 1
    assert count_parameters(padded) > count_parameters(model)
    assert torch.allclose(padded(tokens).logits, model(tokens).logits, atol=2e-5)


@pytest.mark.parametrize("family", REFUSED)
def test_what_zeros_would_change_is_refused(family: str) -> None:
    model = build(family)
    layout = declared_layout(model)
    assert layout is not None
    with pytest.raises(ValueError, match="cannot be padded to equal widths: it"):
        pad_to_equal_widths(model, layout)


def test_the_command_writes_a_folder_that_plain_transformers_loads(
    tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build("llama_gqa_tied")
    layout = declared_layout(model)
    assert layout is not None
    groups = find_units(model, layout)
    cut(model, layout, groups, half_of(groups, STRUCTURES["block"]))
    save_checkpoint(model, tokenizer, tmp_path / "model")
    assert main([str(tmp_path / "model"), str(tmp_path / "padded"), "--to", "padded"]) == 0
    assert "MiB" in capsys.readouterr().out
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "padded")
    assert torch.allclose(again(tokens).logits, model(tokens).logits, atol=2e-5)
