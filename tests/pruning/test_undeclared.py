"""Architectures that are not declared: what is discovered can be cut, or is refused with the model untouched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.layout import DISCOVERED
from pruning.masking import masked
from pruning.model import fingerprint
from pruning.surgery import cut
from pruning.units import removed_units
from tests.plans import STRUCTURES, half_of, removes_something
from tests.pruning.undeclared import OLD_NAMES, make
from tests.zoo import PLAIN

MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "stablelm": ("StableLm", PLAIN, {"num_key_value_heads": 2}),
    "starcoder2": ("Starcoder2", PLAIN, {"num_key_value_heads": 2}),
    "cohere": ("Cohere", PLAIN, {"num_key_value_heads": 2}),
    "gptj": ("GPTJ", PLAIN | OLD_NAMES, {"rotary_dim": 4}),
    "phi": ("Phi", PLAIN, {}),
    "gpt_bigcode": ("GPTBigCode", PLAIN | OLD_NAMES, {}),
    "granite": ("Granite", PLAIN, {"num_key_value_heads": 2}),
    "olmo": ("Olmo", PLAIN, {"num_key_value_heads": 2}),
}
HOLDS = ("kv_group", "query_head", "mlp_channel", "attention_layer", "mlp_layer", "layer", "heads")


def built(name: str) -> PreTrainedModel:
    model_name, sizes, options = MODELS[name]
    return make(model_name, sizes, **options)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", MODELS)
def test_a_cut_gives_the_logits_of_masked_or_is_refused(name: str, structure: str, tokens: torch.Tensor) -> None:
    model = built(name)
    layout = find_layout(model)
    assert layout.family == DISCOVERED
    groups = find_units(model, layout)
    plan = half_of(groups, STRUCTURES[structure])
    if not removes_something(groups, plan):
        pytest.skip("nothing of the kind to remove")
    before = fingerprint(model)
    with torch.no_grad(), masked(model, groups, removed_units(plan, groups)):
        expected = model(tokens).logits
    refusal = None
    try:
        cut(model, layout, groups, plan)
    except ValueError as error:
        refusal = str(error)
    if refusal is None:
        assert torch.allclose(model(tokens).logits, expected, atol=2e-5)
    else:
        assert structure not in HOLDS, refusal
        assert "is not declared, and cutting" in refusal
        assert fingerprint(model) == before


def test_a_cut_that_does_not_hold_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("gpt_bigcode")
    layout = find_layout(model)
    groups = find_units(model, layout)
    monkeypatch.setattr("pruning.surgery.refresh_numbers", lambda *_: None)  # the model keeps its old head counts
    before = fingerprint(model)
    with pytest.raises(
        ValueError, match="model_type='gpt_bigcode' is not declared, and cutting query_head out of it does not"
    ):
        cut(model, layout, groups, half_of(groups, STRUCTURES["query_head"]))
    assert fingerprint(model) == before
