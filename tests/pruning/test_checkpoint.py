"""A pruned model is an ordinary checkpoint that loads to the same bits, and can be pruned again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pruning.cache import Cache
from pruning.checkpoint import load_checkpoint, save_checkpoint
from pruning.families import declared_layout, find_layout
from pruning.files import require_free_space
from pruning.grouping import find_units
from pruning.model import Dtype, PretrainedSource, fingerprint
from pruning.surgery import cut
from pruning.units import PruningPlan, UnitKind
from tests import hub_layouts
from tests.plans import STRUCTURES, half_of
from tests.zoo import MODELS, build


def cut_unevenly(model: PreTrainedModel, last: int = 3) -> None:
    layout = find_layout(model)
    groups = find_units(model, layout)
    heads = groups["layers.1.attention"].num_units - 1
    kept = {
        "layers.1.attention": tuple(range(heads)),
        "layers.1.mlp": (0, 3, 5),
        f"layers.{last}.mlp": tuple(range(40)),
    }
    cut(model, layout, groups, PruningPlan(kept, 0.1, 0.1))


FAMILIES = [name for name in MODELS if name not in ("baichuan", "chatglm")]


@pytest.mark.parametrize("structure", ["heads", "hidden", "mixture", "depth_and_width", "layer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_model_loads_to_the_same_logits_and_saves_to_the_same_bytes(
    family: str, structure: str, tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor, tmp_path: Path
) -> None:
    model = build(family)
    layout = declared_layout(model)
    assert layout is not None
    groups = find_units(model, layout)
    cut(model, layout, groups, half_of(groups, STRUCTURES[structure]))
    save_checkpoint(model, tokenizer, tmp_path / "a", "# card\n")
    again = load_checkpoint(tmp_path / "a", torch.float32)
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    save_checkpoint(again, tokenizer, tmp_path / "b", "# card\n")
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]


def test_unequal_widths_load_without_us(
    tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor, tmp_path: Path
) -> None:
    """A process that cannot import this project loads the folders, scores, generates, and saves them again."""
    models = {family: build(family) for family in ("llama_gqa_tied", "phi3", "gpt_neox", "bloom", "mixtral")}
    for family, model in models.items():
        groups = find_units(model, find_layout(model))
        cut(model, find_layout(model), groups, half_of(groups, STRUCTURES["heads"]))
        save_checkpoint(model, tokenizer, tmp_path / family)
    torch.save(tokens, tmp_path / "tokens.pt")
    script = f"""
import sys, torch
from transformers import AutoModelForCausalLM
assert not any(name.startswith("pruning") for name in sys.modules)
tokens = torch.load({str(tmp_path / "tokens.pt")!r})
for family in {list(models)}:
    for folder in (family, family + "_again"):
        model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r} + "/" + folder, trust_remote_code=True)
        model.save_pretrained({str(tmp_path)!r} + "/" + family + "_again")
        torch.save([model(tokens).logits, model.generate(tokens[:1], max_new_tokens=4, do_sample=False)], folder + ".pt")
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment.pop("PYTHONPATH", None)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    for name, model in [(name, model) for family, model in models.items() for name in (family, f"{family}_again")]:
        logits, generated = torch.load(tmp_path / f"{name}.pt")
        expected = model.generate(tokens[:1], max_new_tokens=4, do_sample=False)
        assert torch.equal(logits, model(tokens).logits), name
        assert torch.equal(generated, expected)


def test_unequal_widths_take_part_in_lm_eval(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    cut_unevenly(llama)
    save_checkpoint(llama, tokenizer, tmp_path / "model")
    requests = [Instance("loglikelihood", {}, (f"text {i}", " goes on"), i) for i in range(3)]
    theirs = HFLM(pretrained=str(tmp_path / "model"), trust_remote_code=True, device="cpu", dtype="float32")
    ours = HFLM(pretrained=llama, tokenizer=tokenizer)
    assert theirs.loglikelihood(requests, disable_tqdm=True) == ours.loglikelihood(requests, disable_tqdm=True)


def test_equal_widths_load_in_plain_transformers(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor, tmp_path: Path
) -> None:
    groups = find_units(llama, find_layout(llama))
    kept = {name: tuple(range(24)) for name, group in groups.items() if group.kind is UnitKind.mlp_channel}
    cut(llama, find_layout(llama), groups, PruningPlan(kept, 0.1, 0.1))
    save_checkpoint(llama, tokenizer, tmp_path / "model")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(again(tokens).logits, llama(tokens).logits)
    assert again.config.intermediate_size == 24


def test_a_llama_with_heads_that_do_not_divide_is_saved_as_the_mistral_it_equals(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor, tmp_path: Path
) -> None:
    groups = find_units(llama, find_layout(llama))
    kept = {name: (0, 1, 3) for name, group in groups.items() if group.kind is UnitKind.kv_group}
    cut(llama, find_layout(llama), groups, PruningPlan(kept, 0.1, 0.1))
    save_checkpoint(llama, tokenizer, tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert isinstance(again, MistralForCausalLM)
    assert torch.equal(again(tokens).logits, llama(tokens).logits)
    assert not list((tmp_path / "model").glob("*.py"))


def test_a_model_whose_code_lives_on_the_hub_keeps_its_code(
    tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, auto in (
        (hub_layouts.BaichuanConfig, "AutoConfig"),
        (hub_layouts.BaichuanForCausalLM, "AutoModelForCausalLM"),
    ):
        monkeypatch.setattr(part, "_auto_class", auto)
    build("baichuan").save_pretrained(tmp_path / "hub")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hub", trust_remote_code=True)
    cut_unevenly(model, last=2)
    save_checkpoint(model, tokenizer, tmp_path / "model")
    again = load_checkpoint(tmp_path / "model", torch.float32, trust_remote_code=True)
    assert torch.equal(again(tokens).logits, model(tokens).logits)


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
    cut(again, layout, find_units(again, layout), PruningPlan({"layers.1.mlp": (1,)}, 0.1, 0.1))
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


@pytest.mark.slow
def test_unequal_widths_take_part_in_lm_evals_own_command(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    cut_unevenly(llama)
    save_checkpoint(llama, tokenizer, tmp_path / "model")
    rows = [{"text": f"the number {i} is", "choices": [" even", " odd"], "label": i % 2} for i in range(4)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "parity.yaml").write_text(
        f"task: parity\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path}/items.jsonl\n"
        'output_type: multiple_choice\ntest_split: test\ndoc_to_text: "{{text}}"\ndoc_to_choice: "{{choices}}"\n'
        'doc_to_target: "{{label}}"\nmetric_list:\n  - metric: acc\n'
    )
    arguments = f"pretrained={tmp_path}/model,trust_remote_code=True,dtype=float32"
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", arguments, "--tasks", "parity"]
    command += ["--include_path", str(tmp_path), "--device", "cpu", "--output_path", str(tmp_path / "out")]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=600)
    (found,) = (tmp_path / "out").rglob("results*.json")
    assert json.loads(found.read_text())["results"]["parity"]["acc,none"] in (0, 0.25, 0.5, 0.75, 1)
