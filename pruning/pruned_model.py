"""What makes an ordinary transformers model the pruned one that its configuration describes.

`config.pruned` says in which sizes, numbers and parts the pruned model differs from what the ordinary class builds. This
file needs nothing but torch and transformers: it is saved beside checkpoints of unequal widths, so that they load without
Secateur (`trust_remote_code`).
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


class SkippedSublayer(nn.Module):
    """Stands where an attention or an MLP was cut out: adds nothing to the residual stream."""

    is_skipped = True

    def __init__(self, returns_tuple: bool, adds_residual: bool, layer_idx: int) -> None:
        super().__init__()
        self.returns_tuple = returns_tuple
        self.adds_residual = adds_residual
        self.layer_idx = layer_idx

    def forward(self, hidden_states: torch.Tensor, residual: Any = None, *_: Any, **arguments: Any) -> Any:
        """Return zeros like (B, T, D), or the residual where the sublayer would have added it itself."""
        cache = arguments.get("past_key_values", arguments.get("layer_past"))
        if self.returns_tuple and cache is not None:  # the cache counts its tokens, in every layer
            empty = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 0)
            cache.update(empty, empty, self.layer_idx)
        output = residual if self.adds_residual else torch.zeros_like(hidden_states)
        return (output, None) if self.returns_tuple else output


def select_alibi(module: nn.Module, arguments: tuple, named: dict) -> tuple[tuple, dict]:
    """Give an attention that lost heads the distance biases of those it kept (a forward pre-hook).

    `module.alibi_heads` are the kept heads among `module.alibi_total`. Biases come as (B x H, 1, T) or (B, H, 1, T), masks
    as (B, H, T, T).
    """
    heads: Any = module.alibi_heads
    total: Any = module.alibi_total
    kept = torch.tensor(heads)

    def chosen(name: str, value: Any) -> Any:
        if name == "alibi" and isinstance(value, torch.Tensor) and value.ndim == 3:
            return value.unflatten(0, (-1, total)).index_select(1, kept.to(value.device)).flatten(0, 1)
        if name in ("alibi", "attention_mask") and isinstance(value, torch.Tensor) and value.shape[1] == total:
            return value.index_select(1, kept.to(value.device))
        return value

    return arguments, {name: chosen(name, value) for name, value in named.items()}


def apply_structure(model: nn.Module, structure: dict[str, Any]) -> None:
    """Give a model that its ordinary class has just built the parts, numbers and sizes of the pruned one.

    Args:
        model: in place; resized parameters are left unset.
        structure: `config.pruned`. skipped: module -> arguments of SkippedSublayer, or "identity"; attributes: module ->
            its numbers; configs: module -> configuration values of its own; shapes: parameter -> its size, biases that
            compensation added among them.
    """
    for name, made in structure["skipped"].items():
        replace_module(model, name, nn.Identity() if made == "identity" else SkippedSublayer(**made))
    for name, attributes in structure["attributes"].items():
        for attribute, value in attributes.items():
            setattr(model.get_submodule(name), attribute, tuple(value) if isinstance(value, list) else value)
    for name, values in structure["configs"].items():
        own_config(model.get_submodule(name), values)
    for name, shape in structure["shapes"].items():
        owner, _, part = name.rpartition(".")
        module: Any = model.get_submodule(owner)
        if (parameter := getattr(module, part)) is None:  # a bias that the ordinary class does not have
            setattr(module, part, nn.Parameter(module.weight.new_empty(shape)))
        else:
            replace_parameter(model, parameter, nn.Parameter(parameter.new_empty(shape)))
    for module in model.modules():
        refresh_leaf(module)
    register_alibi(model)


LEAF_SIZES = ("out_features", "in_features", "nx", "nf", "embedding_dim", "normalized_shape")


def refresh_leaf(module: nn.Module) -> None:
    """Set the sizes that a linear map, an embedding or a norm keeps as numbers (LEAF_SIZES)."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, Conv1D):
        module.nx, module.nf = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.LayerNorm) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)


def register_alibi(model: nn.Module) -> None:
    """Have every attention that knows which heads it kept select their distance biases."""
    for module in model.modules():
        if hasattr(module, "alibi_heads") and not hasattr(module, "alibi_hook"):
            hook: Any = module.register_forward_pre_hook(select_alibi, with_kwargs=True)
            module.alibi_hook = hook


def own_config(module: nn.Module, values: dict[str, Any]) -> None:
    """Give a module a configuration of its own with some values changed."""
    config: Any = copy.copy(module.config)
    config.__dict__.pop("_heterogeneity_spec", None)
    for name, value in values.items():
        setattr(config, name, value)
    module.config = config


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where the module of that name is."""
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)


def replace_parameter(model: nn.Module, old: nn.Parameter, new: nn.Parameter) -> None:
    """Put `new` wherever `old` is used (tied parameters are in several places)."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter is old:
                setattr(module, name, new)


def ordinary_config(config: Any) -> Any:
    """Return the configuration that the ordinary class is to be built from."""
    built = copy.deepcopy(config)
    built.per_layer_config = None
    structure = built.__dict__.pop("pruned", None)
    for name, value in (structure or {"base": {}})["base"].items():
        setattr(built, name, value)
    return built


def pruned_class(base: Any, module: str | None = None) -> Any:
    """Return `base` with a constructor that builds what `config.pruned` describes.

    Args:
        base: the ordinary class, whose name is kept, so that what is saved names the ordinary architecture.
        module: the module that the class is to belong to; that of `base` if None.
    """

    def __init__(self: Any, config: Any, *arguments: Any, **named: Any) -> None:
        if config.is_heterogeneous:
            config.allow_global_per_layer_attribute_access = True
        built = ordinary_config(config)
        base.__init__(self, built, *arguments, **named)
        for part in self.modules():
            if getattr(part, "config", None) is built:
                part.config = config
        config._attn_implementation = built._attn_implementation
        apply_structure(self, config.pruned)

    body = {
        "__init__": __init__,
        "__module__": module or base.__module__,
        "ordinary_class": base,
        # transformers renames the parameters of a file for its own classes only
        "is_custom_code": classmethod(lambda _: base.is_custom_code()),
    }
    return type(base.__name__, (base,), body)
