"""Flatness at the stages of a run: which weights, each model once, and a model that is as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluation.flatness import config as config_module
from evaluation.flatness import stages
from evaluation.flatness.config import FlatnessMeter, MeasuredFlatness, NoFlatness, Space
from evaluation.flatness.factors import unmerged
from evaluation.flatness.landscape import differentiable_twice
from evaluation.flatness.weights import choose_weights, present_names
from pruning.cache import Cache
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.kinds import UnitKind
from pruning.model import fingerprint
from pruning.surgery import cut
from tests.plans import half_of
from tests.zoo import build

QUICK = MeasuredFlatness(
    samples=4, curvature_samples=2, length=8, batch_size=2, products=6, eigenvalues=2, iterations=3, draws=2
)


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    return str(path)


def meter(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, **options: object) -> FlatnessMeter:
    return replace(QUICK, **options).meter(model, find_layout(model), tokenizer, cache, trains_factors=True)


def prune(model: PreTrainedModel, *kinds: UnitKind) -> None:
    layout = find_layout(model)
    groups = find_units(model, layout)
    cut(model, layout, groups, half_of(groups, kinds))


def tuned(model: PreTrainedModel, folder: Path) -> None:
    """Merge an adapter with random factors, and leave it in a folder."""
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(str(folder))
    adapted.unload()
    PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    model.requires_grad_(True).eval()


def test_default_weights_are_outputs_and_downs_at_the_quarters_of_the_depth() -> None:
    for name, outputs, downs in (
        ("llama_mha", "model.layers.{}.self_attn.o_proj.weight", "model.layers.{}.mlp.down_proj.weight"),
        ("gpt2", "transformer.h.{}.attn.c_proj.weight", "transformer.h.{}.mlp.c_proj.weight"),
        ("mixtral", "model.layers.{}.self_attn.o_proj.weight", "model.layers.{}.mlp.experts.down_proj"),
    ):
        model = build(name)
        found = present_names(model, choose_weights(model, find_layout(model), None))
        assert sorted(found) == sorted(path.format(depth) for depth in (1, 2, 3) for path in (outputs, downs))


def test_named_weights(llama: PreTrainedModel) -> None:
    layout = find_layout(llama)
    found = present_names(llama, choose_weights(llama, layout, [r"\.2\..*o_proj", "embed"]))
    assert found == ["model.embed_tokens.weight", "model.layers.2.self_attn.o_proj.weight"]
    with pytest.raises(ValueError, match="flatness.parameters=wrong: is found in no name"):
        choose_weights(llama, layout, ["o_proj", "wrong"])


def test_weights_are_found_again_after_cuts(llama: PreTrainedModel) -> None:
    chosen = choose_weights(llama, find_layout(llama), [r"layers\.[13]\.(self_attn\.o_proj|mlp\.down_proj)"])
    prune(llama, UnitKind.kv_group, UnitKind.mlp_channel)
    assert len(present_names(llama, chosen)) == 4
    last = llama.model.layers[3].mlp.down_proj.weight
    prune(llama, UnitKind.layer)
    names = present_names(llama, chosen)
    assert names == ["model.layers.2.self_attn.o_proj.weight", "model.layers.2.mlp.down_proj.weight"]
    assert llama.get_parameter(names[1]) is last


def test_each_model_is_measured_once_and_stays_as_it_is(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    figures = stages.flatness_figures
    monkeypatch.setattr(stages, "flatness_figures", lambda *given: measured.append(0) or figures(*given))
    llama.model.embed_tokens.weight.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in llama.parameters()]
    before = fingerprint(llama)
    dense = meter(llama, tokenizer, cache, text=text).measure("dense", llama)
    assert fingerprint(llama) == before
    assert [parameter.requires_grad for parameter in llama.parameters()] == flags
    assert all(parameter.grad is None for parameter in llama.parameters())
    again = meter(llama, tokenizer, cache, text=text).measure("recovered", llama)
    assert again == {name.replace("/dense/", "/recovered/"): value for name, value in dense.items()}
    assert len(measured) == 1
    meter(llama, tokenizer, cache, text=text, draws=3).measure("dense", llama)
    assert len(measured) == 2
    prune(llama, UnitKind.mlp_channel)
    pruned = meter(llama, tokenizer, cache, text=text).measure("pruned", llama)
    assert len(measured) == 3
    assert pruned["flatness/pruned/parameters"] < dense["flatness/dense/parameters"]


def test_the_loss_is_that_of_the_text(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, text: str
) -> None:
    ids = tokenizer(Path(text).read_text(), add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    windows = ids[: len(ids) // 8 * 8].view(-1, 8)
    read = windows[[0, len(windows) // 2]]  # of four spread evenly, the first and the third
    found = meter(llama, tokenizer, cache, text=text).measure("dense", llama)["flatness/dense/loss"]
    assert found == pytest.approx(llama(input_ids=read, labels=read).loss.item(), rel=1e-5)


def test_a_bfloat16_model_is_measured_in_float32_and_kept(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, text: str
) -> None:
    exact = build("llama_gqa_tied")
    for parameter, rounded in zip(llama.parameters(), exact.parameters(), strict=True):
        parameter.data = parameter.data.bfloat16()
        rounded.data = parameter.data.float()
    before = fingerprint(llama)
    found = meter(llama, tokenizer, cache, text=text).measure("dense", llama)
    assert fingerprint(llama) == before
    assert found == pytest.approx(meter(exact, tokenizer, cache, text=text).measure("dense", exact), rel=1e-6)


def test_nothing_is_measured_by_default_and_where_no_weight_is_left(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, text: str
) -> None:
    none = NoFlatness().meter(llama, find_layout(llama), tokenizer, cache, trains_factors=False)
    assert none.measure("dense", llama) == {}
    own = meter(llama, tokenizer, cache, text=text, parameters=[r"layers\.1\.mlp\.down"])
    prune(llama, UnitKind.layer)
    assert own.measure("pruned", llama) == {}


def test_a_merged_adapter_comes_apart_and_together(
    llama: PreTrainedModel, tokens: torch.Tensor, tmp_path: Path
) -> None:
    base = {name: value.clone() for name, value in llama.state_dict().items()}
    tuned(llama, tmp_path)
    merged, logits = fingerprint(llama), llama(tokens).logits
    with unmerged(llama, tmp_path) as (adapted, names):
        assert len(names) == 2 * 2 * 4
        assert {name.split(".")[-3] for name in names} == {"lora_A", "lora_B"}
        torch.testing.assert_close(adapted(input_ids=tokens).logits, logits, rtol=0, atol=1e-4)
        own = adapted.get_parameter("base_model.model.model.layers.0.mlp.down_proj.base_layer.weight")
        torch.testing.assert_close(own, base["model.layers.0.mlp.down_proj.weight"], rtol=0, atol=1e-6)
    assert fingerprint(llama) == merged
    assert all(parameter.requires_grad for parameter in llama.parameters())


def test_the_space_of_the_factors(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, text: str, tmp_path: Path
) -> None:
    own = meter(llama, tokenizer, cache, text=text, space=Space.lora)
    assert own.measure("dense", llama) == {}
    tuned(llama, tmp_path / "adapter")
    before = fingerprint(llama)
    found = own.measure("recovered", llama, tmp_path / "adapter")
    assert fingerprint(llama) == before
    assert found["flatness/recovered/parameters"] == 4 * 2 * (32 + 64 + 48 + 32)
    assert found["flatness/recovered/trGGN"] > 0
    with pytest.raises(ValueError, match=r"flatness.space=lora: .* use recovery=lora without use_dora, or .*=layers"):
        replace(QUICK, text=text, space=Space.lora).meter(llama, find_layout(llama), tokenizer, cache, False)


def test_mixtures_are_measured_and_keep_their_grouped_products(
    tokenizer: PreTrainedTokenizerBase, cache: Cache, text: str
) -> None:
    model = build("mixtral")
    own = model.config._experts_implementation
    found = meter(model, tokenizer, cache, text=text).measure("dense", model)
    assert found["flatness/dense/trGGN"] > 0
    assert model.config._experts_implementation == own != "eager"


def test_what_cannot_be_differentiated_twice_is_refused_before_any_work(
    tokenizer: PreTrainedTokenizerBase, cache: Cache, text: str
) -> None:
    with pytest.raises(ValueError, match="BloomForCausalLM cannot be differentiated twice .* use flatness=none"):
        meter(build("bloom"), tokenizer, cache, text=text)


def test_only_the_chosen_weights_take_gradients_inside(llama: PreTrainedModel) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    with differentiable_twice(llama, [name]):
        assert [n for n, parameter in llama.named_parameters() if parameter.requires_grad] == [name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"products": 5}, "flatness.products=5: must be at least 6"),
        ({"iterations": 9}, "flatness.iterations=9: must be at least 10"),
        ({"curvature_samples": 256}, "flatness.curvature_samples=256: must be at most flatness.samples=128"),
        ({"batch_size": 3}, "flatness.batch_size=3: must divide flatness.curvature_samples=4"),
        ({"rhos": [0.1, 0.0]}, r"flatness.rhos\[1\]=0: must be above 0"),
        ({"parameters": ["("]}, r"flatness.parameters=\(: is not a regular expression"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeasuredFlatness(**options)


def test_without_the_library_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed: pip install --constraint constraints.txt .*'\.\[flatness\]'"):
        MeasuredFlatness()
