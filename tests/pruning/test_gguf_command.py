"""`python -m pruning.export` on saved checkpoints."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from transformers import LlamaForCausalLM, MistralForCausalLM

from pruning.checkpoint import save_checkpoint
from pruning.export.__main__ import main
from pruning.families import find_layout
from pruning.model import byte_tokenizer
from pruning.structure import record_structure
from tests.pruning.gguf_files import arrays, as_transformers, assert_same, field, tensors
from tests.pruning.narrow import skip_attention, unequal
from tests.zoo import build


@pytest.mark.parametrize("model_class", [LlamaForCausalLM, MistralForCausalLM])
def test_command_writes_a_checkpoint(model_class: type, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build("llama_gqa_tied" if model_class is LlamaForCausalLM else "mistral")
    model.save_pretrained(tmp_path / "checkpoint")
    byte_tokenizer().save_pretrained(tmp_path / "checkpoint")
    assert main([str(tmp_path / "checkpoint"), str(tmp_path / "out" / "tiny.gguf")]) == 0
    reader = gguf.GGUFReader(tmp_path / "out" / "tiny.gguf")
    found = as_transformers(tensors(reader), [0, 1, 2, 3], paired=True)
    assert_same(found, model, tied=model_class is LlamaForCausalLM)
    assert field(reader, "general.name") == "tiny"
    assert "tiny.gguf" in capsys.readouterr().out


def test_command_writes_a_pruned_checkpoint(tmp_path: Path) -> None:
    model = unequal(build("llama_gqa_tied"))
    skip_attention(model.model.layers[3])
    record_structure(model, find_layout(model))
    save_checkpoint(model, byte_tokenizer(), tmp_path / "checkpoint")
    assert main([str(tmp_path / "checkpoint"), str(tmp_path / "tiny"), "--to", "gguf", "--dtype", "float32"]) == 0
    reader = gguf.GGUFReader(tmp_path / "tiny")
    assert arrays(reader) == [[4, 2, 8, 0], [2, 2, 4, 0], [40, 30, 48, 48]]
    assert_same(as_transformers(tensors(reader), [0, 1, 2, 3], paired=True), model, tied=True)


@pytest.mark.parametrize(
    ("file", "message"),
    [("out.bin", "end it in .gguf, or give --to gguf, padded"), ("out.gguf", "holds no config.json")],
)
def test_command_says_what_is_wrong(
    file: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), str(tmp_path / file)]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
