"""Kinds of modules that discovery knows, and a copy of a model without its weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pruning.layout import inputs_of, is_linear, outputs_of


class Unproved(Exception):
    """A module whose part in the layout cannot be proved, and why. Discovery turns it into the user's ValueError."""

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(f"{module or 'the model'}: {reason}")


def is_norm(module: nn.Module) -> bool:
    """Say whether a module is a norm, by the name of its class."""
    return "norm" in type(module).__name__.lower() and not any(module.children())


def is_experts(module: nn.Module) -> bool:
    """Say whether a module holds the stacked weights of a mixture of experts, as `ExpertsLayout` describes them."""
    sizes = parameter_sizes(module)
    if set(sizes) != {"gate_up_proj", "down_proj"} or len(sizes["down_proj"]) != 3:
        return False
    count, width, channels = sizes["down_proj"]
    return sizes["gate_up_proj"] == (count, 2 * channels, width)


def parameter_sizes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the sizes of a module's own parameters; single numbers are left out."""
    found = module.named_parameters(recurse=False)
    return {name: tuple(parameter.shape) for name, parameter in found if parameter.numel() > 1}


def map_sizes(name: str, module: nn.Module) -> tuple[int, int]:
    """Return the inputs and outputs of a linear map or of experts."""
    if not is_linear(module):
        _, width, _ = parameter_sizes(module)["down_proj"]
        return width, width
    if not _is_plain(module):
        raise Unproved(name, f"is a {type(module).__name__}, which is more than a linear map")
    return inputs_of(module), outputs_of(module)


def _is_plain(linear: Any) -> bool:
    """Say whether a linear map is no more than that: a class derived from it may have a forward function of its own."""
    if type(linear).forward in (nn.Linear.forward, Conv1D.forward):
        return True
    kept, random = linear.weight, torch.Generator().manual_seed(0)
    weight = torch.rand(kept.shape, generator=random).double()
    states = torch.rand(1, 2, inputs_of(linear), generator=random).double()
    linear.weight = nn.Parameter(weight, requires_grad=False)
    with torch.no_grad():
        output = linear(states)
    linear.weight = kept
    expected = states @ (weight if isinstance(linear, Conv1D) else weight.T) + (
        0 if linear.bias is None else linear.bias
    )
    return isinstance(output, torch.Tensor) and torch.allclose(output, expected)


def weightless(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy in float64 on the CPU whose matrices are zeros without memory, and whose vectors are ones."""
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    replaced: dict[int, Any] = {}
    for parameter in model.parameters():
        values = one.expand(parameter.shape).clone() if parameter.ndim < 2 else zero.expand(parameter.shape)
        replaced[id(parameter)] = nn.Parameter(values, requires_grad=False)
    copied: Any = copy.deepcopy(model, replaced)
    copied = copied.to(device="cpu", dtype=torch.float64).eval()
    copied.config.use_cache = False
    copied.config._experts_implementation = "eager"
    if copied.config._attn_implementation not in ("eager", "sdpa"):  # others want other types of numbers, or a GPU
        copied.config._attn_implementation = "eager"
    return copied
