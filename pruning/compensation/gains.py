"""Gains: a factor for the output of every attention and every MLP, and for the logits, fitted to the calibration text.

After a cut some of what stays is too loud or too quiet, and predictions are too sure of themselves. One Gauss-Newton step
from 1 corrects that. With s_t the derivatives of the loss by the gains through token t, (G,) for G gains,

    d = -(F + r diag F)^-1 g,   g = mean_t s_t on the text's next tokens
                                F = mean_t s_t s_t^T on next tokens drawn from the model's predictions

F is the Fisher information, which for the next-token loss is the Gauss-Newton matrix (Martens, JMLR 2020, section 9). The
factors 1 + d then disappear into the weights of the maps whose outputs they scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.compensation.base import Correction
from pruning.importance.gradients import (
    drawn_label_gradient,
    label_places,
    next_token_logits,
    only_trainable,
    split_samples,
    text_label_gradient,
)
from pruning.importance.mask_gradients import watched_outputs
from pruning.importance.reduction import wider
from pruning.layout import output_dim
from pruning.progress import track

LARGEST_STEP = 0.3
"""A gain stays in [1 - this, 1 + this]: farther away a quadratic model of the loss says nothing."""


def fit_gains(
    model: PreTrainedModel, outputs: Sequence[str], samples: torch.Tensor, ridge: float, batch_size: int
) -> dict[str, float]:
    """Return the change of the gain of every module named, d in the formula of the module; the model is left as it was.

    Args:
        model: in evaluation mode.
        outputs: modules whose outputs get a gain each.
        samples: token ids, (N, T).
        ridge: r.
        batch_size: samples run at once.
    """
    places = label_places(samples, seed=0)
    gradient = torch.zeros(len(outputs), dtype=torch.float64)
    fisher = torch.zeros(len(outputs), len(outputs), dtype=torch.float64)
    derivatives: dict[str, torch.Tensor] = {}

    def watch(name: str, output: torch.Tensor, slope: torch.Tensor) -> None:
        derivatives[name] = (output.to(wider(output)) * slope).sum(dim=-1).flatten().double().cpu()

    with only_trainable(model, ()), watched_outputs(model, outputs, watch):
        for batch, own in track(
            list(zip(split_samples(samples, batch_size), places.split(batch_size), strict=True)), "gains"
        ):
            logits = next_token_logits(model, batch)
            logits.backward(text_label_gradient(logits, batch[:, 1:]), retain_graph=True)
            gradient += torch.stack([derivatives[name] for name in outputs]).sum(dim=1) * len(batch)
            logits.backward(drawn_label_gradient(logits, own))
            slopes = torch.stack([derivatives[name] for name in outputs]) * own.numel()  # of each token's own loss
            fisher += slopes @ slopes.T
    gradient /= len(samples)
    fisher /= places.numel()
    # What a norm follows has no effect: without the last term its gain would be a quotient of rounding errors.
    fisher += torch.diag(ridge * fisher.diagonal() + 1e-6 * fisher.diagonal().mean().clamp_min(1e-30))
    step = -torch.linalg.solve(fisher, gradient)
    return dict(zip(outputs, step.clamp(-LARGEST_STEP, LARGEST_STEP).tolist(), strict=True))


def gained(module: nn.Module, present: Correction | None, change: float) -> Correction:
    """Return the correction that multiplies the module's output by 1 + `change`, on top of one that is there already.

    Args:
        module: a linear map or a norm, corrected so far.
        present: its correction so far, without an added bias.
        change: d of its gain.
    """
    own = module.weight
    assert isinstance(own, torch.Tensor)
    corrected = None if present is None else present.weight
    weight = (own.detach().movedim(output_dim(module), 0) if corrected is None else corrected).double()
    shift = 1.0 if _adds_one(module) else 0.0
    bias = getattr(module, "bias", None)
    return Correction(
        ((weight + shift) * (1 + change) - shift).to(own.dtype),
        None if bias is None else change * bias.detach().double(),
    )


def final_norm(model: PreTrainedModel, sample: torch.Tensor) -> str | None:
    """Return the norm whose output the output embeddings read, or None where there is none with a weight.

    Args:
        model: in evaluation mode.
        sample: token ids, (1, T).
    """
    head = model.get_output_embeddings()
    read: list[int] = []
    written: dict[int, str] = {}
    handles = [head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].data_ptr()))]
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.ndim == 1 and not list(module.children()):
            handles.append(module.register_forward_hook(_note_output(written, name)))
    try:
        with torch.no_grad():
            model(input_ids=sample.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return written.get(read[0]) if read else None


def _note_output(written: dict[int, str], name: str) -> Callable[..., None]:
    kept: list[torch.Tensor] = []  # outputs stay alive until the head has run: no other tensor takes their place

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        kept.append(output)
        written[output.data_ptr()] = name

    return note


@torch.no_grad()
def _adds_one(module: nn.Module) -> bool:
    """Say whether a norm multiplies by 1 + weight (Gemma) instead of by its weight."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if weight.ndim != 1:
        return False
    probe = torch.linspace(-1, 2, weight.shape[0], dtype=weight.dtype, device=weight.device)[None]
    saved, bias = weight.detach().clone(), getattr(module, "bias", None)
    weight.zero_()
    silent = module(probe) if bias is None else module(probe) - bias
    weight.copy_(saved)
    return bool(silent.abs().max() > 1e-6)
