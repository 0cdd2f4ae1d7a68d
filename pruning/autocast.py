"""Autocast: matrix products in bfloat16 where that is faster, while weights, sums and what norms put out keep their type."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

AUTO = "auto"
"""The setting that leaves it to `computes_in_bfloat16`."""

CPU_SUPPORT = ("avx512_bf16", "amx_bf16", "bf16")
"""Capabilities of processors that multiply in bfloat16; others only imitate it, and are slower for it."""


def check_bf16(key: str, asked: bool | str) -> None:
    """Raise when a setting of that name is neither true nor false nor auto."""
    if not isinstance(asked, bool) and asked != AUTO:
        raise ValueError(f"{key}={asked}: must be true, false, or auto for where the processor or GPU computes in it")


def is_in_bfloat16(asked: bool | str, model: PreTrainedModel) -> bool:
    """Return whether a setting means autocast for this model: auto does for a float32 model on a device that is faster so."""
    import torch

    if isinstance(asked, bool):
        return asked
    return model.dtype == torch.float32 and computes_in_bfloat16(model.device)


def computes_in_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies matrices in bfloat16 with instructions of its own."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(found.get(name, False) for name in CPU_SUPPORT)


def passes(asked: bool | str, model: PreTrainedModel) -> AbstractContextManager[None]:
    """Return the context of passes of a model under such a setting; nothing is kept of its weights from one to the next."""
    import torch

    if not is_in_bfloat16(asked, model):
        return nullcontext()
    return torch.autocast(model.device.type, torch.bfloat16, cache_enabled=False)


def autocast_inputs(device: torch.device) -> dict[str, str]:
    """Return what results that are kept depend on of autocast: its type, nothing where it is off."""
    import torch

    on = torch.is_autocast_enabled(device.type)
    return {"autocast": str(torch.get_autocast_dtype(device.type))} if on else {}
