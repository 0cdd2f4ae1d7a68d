"""A pruned model is an ordinary checkpoint that loads to the same bits, and can be pruned again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from pruning.cache import Cache
from pruning.checkpoint import load_checkpoint, save_checkpoint
from pruning.families import find_layout, find_units
from pruning.files import require_free_space
from pruning.model import Dtype, PretrainedSource, fingerprint
from pruning.surgery import cut
from pruning.units import PruningPlan


def cut_unevenly(model: PreTrainedModel) -> None:
    layout = find_layout(model)
    groups = find_units(model, layout)
    heads = groups["layers.1.attention"].num_units - 1
    kept = {"layers.1.attention": tuple(range(heads)), "layers.2.mlp": (0, 3, 5), "layers.3.mlp": tuple(range(40))}
    cut(model, layout, groups, PruningPlan(kept, 0.1, 0.1))


def test_a_pruned_model_loads_to_the_same_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor, tmp_path: Path
) -> None:
    cut_unevenly(model)
    save_checkpoint(model, tokenizer, tmp_path / "model", "# card\n")
    again = load_checkpoint(tmp_path / "model", torch.float32)
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert type(again).__name__ == type(model).__name__
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]


def test_save_load_save_is_byte_identical(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    cut_unevenly(model)
    save_checkpoint(model, tokenizer, tmp_path / "a")
    save_checkpoint(load_checkpoint(tmp_path / "a", torch.float32), tokenizer, tmp_path / "b")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_loaded_model_can_be_pruned_further(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor, tmp_path: Path, cache: Cache
) -> None:
    cut_unevenly(llama)
    save_checkpoint(llama, tokenizer, tmp_path / "model")
    source = PretrainedSource(name="again", path=str(tmp_path / "model"), dtype=Dtype.float32)
    again, its_tokenizer = source.load(cache, "cpu")
    assert fingerprint(again) == fingerprint(llama)
    assert its_tokenizer("abc")["input_ids"] == tokenizer("abc")["input_ids"]
    layout = find_layout(again)
    cut(again, layout, find_units(again, layout), PruningPlan({"layers.2.mlp": (1,)}, 0.1, 0.1))
    assert again(tokens).logits.isfinite().all()


def test_an_unpruned_model_loads_in_plain_transformers(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor, tmp_path: Path
) -> None:
    save_checkpoint(llama, tokenizer, tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(again(tokens).logits, llama(tokens).logits)


def test_a_failed_save_leaves_what_was_there(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(llama, tokenizer, tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    monkeypatch.setattr(tokenizer, "save_pretrained", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    cut_unevenly(llama)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(llama, tokenizer, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_too_little_space_is_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs .* MiB, but only .* MiB are free.*save_model=false"):
        require_free_space(tmp_path / "not" / "there", 10**18, "the checkpoint")
