"""What the dense model says of the blocks that a pruned model is trained on, and the loss that is made of it.

Kept are the dense model's last hidden states: its head makes its logits of them, exactly, and they are V / D times smaller
(85 times in SmolLM2), so 100,000 tokens take 0.2 GB. Runs that train on the same blocks share them. Where they take more than
they may, or where logits are more than the head's output (soft caps, scales), the dense model runs along with every batch.
Letters: N blocks or rows, B in a batch, T tokens, D hidden, V vocabulary, P learnt tokens.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from pruning.autocast import autocast_inputs
from pruning.cache import Cache
from pruning.model import fingerprint
from pruning.packing import model_inputs
from pruning.progress import track
from recovery.head import Logits, head_of, is_last, logits_of, run, run_body
from recovery.losses import TeacherOutputs, learnt
from recovery.objectives import Batch

log = logging.getLogger(__name__)

BATCH = 8
STATES = "states.safetensors"


@dataclass(frozen=True)
class KeptTeacher:
    """The dense model's states from the cache, and its head."""

    head: nn.Linear
    states: torch.Tensor
    """Of the distinct blocks, (M, T, D)."""

    places: torch.Tensor
    """Which of them each of all blocks is, (N,)."""

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[torch.Tensor, Logits]:
        """Return states and logits; see `TeacherOutputs`."""
        blocks = batch["blocks"]
        found = self.states[self.places[batch["index"].cpu()]].to(blocks.device)
        states, _ = learnt(found[:, : model_inputs(blocks)["input_ids"].shape[1]], blocks)
        return states, logits_of(states, self.head)


@dataclass(frozen=True)
class RunningTeacher:
    """The dense model itself."""

    model: PreTrainedModel

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[torch.Tensor, Logits]:
        """Return states and logits; see `TeacherOutputs`."""
        states, logits = run(self.model, batch["blocks"])
        return learnt(states, batch["blocks"])[0], logits_of(learnt(logits, batch["blocks"])[0], None)


@torch.no_grad()
def teacher_outputs(dense: PreTrainedModel, blocks: torch.Tensor, cache: Cache, limit: int) -> TeacherOutputs:
    """Return what the dense model says of the blocks (N, T) or rows (N, 3, T), kept if that takes at most `limit` bytes.

    It computes in autocast's type where that is on.
    """
    distinct, places = blocks.unique(dim=0, return_inverse=True)
    first = distinct[:1].to(dense.device)
    states, _ = run(dense, first)
    size = len(distinct) * blocks.shape[-1] * states.shape[-1] * states.element_size()
    if size > limit or not is_last(dense, first):
        log.info("  distillation: the dense model runs along (its states would take %.1f GB)", size / 1e9)
        return RunningTeacher(dense)
    inputs = {"model": fingerprint(dense), "blocks": distinct.tolist(), **autocast_inputs(dense.device)}
    folder = cache.folder("teacher_states", inputs, lambda folder: keep_states(dense, distinct, states.dtype, folder))
    return KeptTeacher(head_of(dense), load_file(folder / STATES)["states"], places)


@torch.no_grad()
def keep_states(dense: PreTrainedModel, blocks: torch.Tensor, dtype: torch.dtype, folder: Path) -> None:
    """Write the last hidden states (M, T, D) of blocks (M, T) or rows (M, 3, T) into a folder; zero where a row is padding."""
    states = torch.zeros(len(blocks), blocks.shape[-1], head_of(dense).weight.shape[1], dtype=dtype)
    for index in track(torch.arange(len(blocks)).split(BATCH), "the dense model"):
        found = run_body(dense, blocks[index].to(dense.device))
        states[index, : found.shape[1]] = found.cpu()
    save_file({"states": states}, folder / STATES)


def require_equal_widths(model: PreTrainedModel, dense: PreTrainedModel) -> None:
    """Raise where the hidden states of the two models cannot be compared."""
    own, wanted = (one.get_input_embeddings().embedding_dim for one in (model, dense))
    if own != wanted:
        raise ValueError(
            f"recovery.objective.hidden_weight: the pruned model's hidden width is {own}, the dense model's {wanted}: set it "
            "to 0, or leave `hidden` out of pruning.structures"
        )
