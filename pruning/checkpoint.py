"""Pruned models as ordinary checkpoints: config.json, safetensors, tokenizer; no pickles.

Equal widths load with plain transformers. Unequal widths load here, and with `trust_remote_code` through the small file
that is saved beside them, which is `pruned_model.py` with one line more.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pruning import pruned_model
from pruning.files import require_free_space, whole_folder, write_text
from pruning.layout import weight_of
from pruning.model import fingerprint
from pruning.pruned_model import ordinary_config, pruned_class

MODELING_FILE = "modeling_pruned"


def is_pruned(config: PreTrainedConfig) -> bool:
    """Say whether a configuration describes a model that its ordinary class does not build."""
    return hasattr(config, "pruned")


def save_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, model_card: str = ""
) -> None:
    """Write the model and its tokenizer to `folder`, and check that they load again as they are.

    Raises:
        RuntimeError: what was written does not load to the same model; `folder` is then as it was before.
    """
    saved = as_mistral(model) or model
    with whole_folder(folder) as temporary:
        saved.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if model_card:
            write_text(temporary / "README.md", model_card + how_to_load(saved))
        _add_modeling_file(saved, temporary)
        _check_reload(model, saved, temporary)


def how_to_load(model: PreTrainedModel) -> str:
    """Return the part of a model card that says how a saved model is loaded."""
    trust = ", trust_remote_code=True" if is_pruned(model.config) else ""
    said = f"`{MODELING_FILE}.py`, saved beside the weights, builds its layers." if trust else "An ordinary checkpoint."
    return (
        f"\n{said}\n\n```python\nfrom transformers import AutoModelForCausalLM\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("."{trust})\n```\n'
    )


def require_space_for(model: PreTrainedModel, folder: Path) -> None:
    """Raise when the disk that holds `folder` has no room for a checkpoint of `model`, with a tenth to spare."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    require_free_space(folder, int(1.1 * size) + 50 * 2**20, "the checkpoint")


def load_checkpoint(folder: Path, dtype: torch.dtype, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a causal language model from a folder, pruned or not, in evaluation mode."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if is_pruned(config) and type(config) in AutoModelForCausalLM._model_mapping:
        base: Any = AutoModelForCausalLM._model_mapping[type(config)]
        return pruned_class(base).from_pretrained(folder, config=config, dtype=dtype).eval()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=trust_remote_code).eval()


def modeling_source(ordinary: type[PreTrainedModel]) -> str:
    """Return the Python file that lets transformers load a pruned model of an ordinary class without Secateur."""
    name = ordinary.__name__
    place = f".{ordinary.__module__.rpartition('.')[2]}" if ordinary.is_custom_code() else "transformers"
    lines = (f"from {place} import {name} as Ordinary  # noqa: E402", f"{name} = pruned_class(Ordinary, __name__)")
    return "\n\n".join((Path(pruned_model.__file__).read_text(encoding="utf-8"), *lines)) + "\n"


def _add_modeling_file(model: PreTrainedModel, folder: Path) -> None:
    """Put the modeling file beside a model that its ordinary class does not build, and name it in config.json."""
    place = folder / "config.json"
    config = json.loads(place.read_text(encoding="utf-8"))
    code = config.pop("auto_map", {})
    if is_pruned(model.config):
        ordinary = _ordinary_class(model)
        code["AutoModelForCausalLM"] = f"{MODELING_FILE}.{ordinary.__name__}"
        write_text(folder / f"{MODELING_FILE}.py", modeling_source(ordinary))
    elif MODELING_FILE in code.get("AutoModelForCausalLM", ""):
        del code["AutoModelForCausalLM"]
    write_text(place, json.dumps(config | ({"auto_map": code} if code else {}), indent=2, sort_keys=True) + "\n")


def as_mistral(model: PreTrainedModel) -> PreTrainedModel | None:
    """Return a LLaMA of equal widths as the Mistral that computes the same, or None where that is not needed or possible.

    transformers refuses a LLaMA whose head count does not divide the hidden size; Mistral has the same parameters under
    the same names and no such rule. It shares the weights of `model`.
    """
    if not is_pruned(model.config) or _ordinary_class(model) is not LlamaForCausalLM:
        return None
    config = ordinary_config(model.config)
    attention = model.model.layers[0].self_attn
    if config.attention_bias or config.mlp_bias or not hasattr(attention, "q_proj"):
        return None
    values = {name: value for name, value in config.to_dict().items() if hasattr(MistralConfig(), name)}
    heads = attention.q_proj.out_features // config.head_dim
    values |= {
        "architectures": None,
        "model_type": "mistral",
        "sliding_window": None,
        "hidden_size": weight_of(model.get_input_embeddings()).shape[1],
        "num_attention_heads": heads,
        "num_key_value_heads": attention.k_proj.out_features // config.head_dim,
        "intermediate_size": getattr(model.model.layers[0].mlp, "intermediate_size", config.intermediate_size),
    }
    with torch.device("meta"):
        twin = MistralForCausalLM(MistralConfig(**values))
    weights = model.state_dict()
    if {name: value.shape for name, value in twin.state_dict().items()} != {n: v.shape for n, v in weights.items()}:
        return None
    with torch.device(model.device):
        rotary = type(twin.model.rotary_emb)(twin.config)
    twin.load_state_dict(weights, assign=True)
    twin.model.rotary_emb = rotary
    twin.tie_weights()
    twin.generation_config = model.generation_config
    return twin.eval()


def _ordinary_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    return getattr(type(model), "ordinary_class", type(model))


@torch.inference_mode()
def _check_reload(model: PreTrainedModel, saved: PreTrainedModel, folder: Path) -> None:
    """Raise unless the folder loads to the weights of `saved`, and computes what `model` does."""
    again = load_checkpoint(folder, saved.dtype, trust_remote_code=_ordinary_class(saved).is_custom_code())
    tokens = (torch.arange(16) % model.config.vocab_size).view(1, -1)
    expected = model(input_ids=tokens.to(model.device)).logits.cpu()
    found = again(input_ids=tokens).logits
    same = torch.allclose(found.float(), expected.float(), rtol=1e-2, atol=1e-3 * float(expected.abs().max()))
    if fingerprint(again) != fingerprint(saved) or not same:
        raise RuntimeError(f"{folder}: the saved model does not load to the model it was saved from")
