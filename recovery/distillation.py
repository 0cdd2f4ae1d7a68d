"""What the dense model says of the blocks that a pruned model is trained on, and the loss that is made of it.

Kept are the dense model's last hidden states: its head makes its logits of them, exactly, and they are V / D times smaller
(85 times in SmolLM2), so 100,000 tokens take 0.2 GB. Runs that train on the same blocks share them. Where they take more than
they may, or where logits are more than the head's output (soft caps, scales), the dense model runs along with every batch.
Letters: N blocks or rows, B in a batch, T tokens, D hidden, V vocabulary, P learnt tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from pruning.cache import Cache
from pruning.model import fingerprint
from pruning.packing import model_inputs
from pruning.progress import track
from recovery.losses import divergence, learnt, relative_distance
from recovery.objectives import Batch

log = logging.getLogger(__name__)

BATCH = 8
STATES = "states.safetensors"


TeacherOutputs = Callable[[Batch], tuple[torch.Tensor, torch.Tensor]]
"""From a batch to the dense model's last hidden states (P, D) and its logits (P, V) where a learnt token comes next."""


class DistillationLoss:
    """weight x divergence + (1 - weight) x cross-entropy + hidden_weight x distance of the hidden states."""

    def __init__(self, teacher: TeacherOutputs, temperature: float, weight: float, hidden_weight: float) -> None:
        self.teacher = teacher
        self.temperature = temperature
        self.weight = weight
        self.hidden_weight = hidden_weight

    def __call__(self, model: torch.nn.Module, batch: Batch, items: torch.Tensor | int) -> torch.Tensor:
        """Return the batch's part of the mean over the `items` learnt tokens of its step, nats per token."""
        blocks = batch["blocks"]
        with head_input(model) as seen:
            logits = model(**model_inputs(blocks), use_cache=False).logits
        predicted, targets = learnt(logits, blocks)
        teacher_states, teacher_logits = self.teacher(batch)
        loss = self.weight * divergence(predicted, teacher_logits, self.temperature)
        if self.weight < 1:
            loss = loss + (1 - self.weight) * F.cross_entropy(predicted.float(), targets, reduction="sum")
        if self.hidden_weight:
            states, _ = learnt(seen[0], blocks)
            loss = loss + self.hidden_weight * relative_distance(states, teacher_states)
        return loss / items


@dataclass(frozen=True)
class KeptTeacher:
    """The dense model's states from the cache, and its head."""

    head: torch.nn.Module
    states: torch.Tensor
    """Of the distinct blocks, (M, T, D)."""

    places: torch.Tensor
    """Which of them each of all blocks is, (N,)."""

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return states and logits; see `TeacherOutputs`."""
        blocks = batch["blocks"]
        found = self.states[self.places[batch["index"].cpu()]].to(blocks.device)
        states, _ = learnt(found[:, : model_inputs(blocks)["input_ids"].shape[1]], blocks)
        return states, self.head(states)


@dataclass(frozen=True)
class RunningTeacher:
    """The dense model itself."""

    model: PreTrainedModel

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return states and logits; see `TeacherOutputs`."""
        blocks = batch["blocks"]
        states, logits = outputs_of(self.model, blocks)
        return learnt(states, blocks)[0], learnt(logits, blocks)[0]


def teacher_outputs(dense: PreTrainedModel, blocks: torch.Tensor, cache: Cache, limit: int) -> TeacherOutputs:
    """Return what the dense model says of the blocks (N, T) or rows (N, 3, T), kept if that takes at most `limit` bytes."""
    distinct, places = blocks.unique(dim=0, return_inverse=True)
    head = dense.get_output_embeddings()
    states, logits = outputs_of(dense, distinct[:1].to(dense.device))
    size = len(distinct) * blocks.shape[-1] * states.shape[-1] * states.element_size()
    if size > limit or not torch.equal(head(states), logits):
        log.info("  distillation: the dense model runs along (its states would take %.1f GB)", size / 1e9)
        return RunningTeacher(dense)
    inputs = {"model": fingerprint(dense), "blocks": distinct.tolist()}
    folder = cache.folder("teacher_states", inputs, lambda folder: keep_states(dense, distinct, folder))
    return KeptTeacher(head, load_file(folder / STATES)["states"], places)


@torch.no_grad()
def keep_states(dense: PreTrainedModel, blocks: torch.Tensor, folder: Path) -> None:
    """Write the last hidden states (M, T, D) of blocks (M, T) or rows (M, 3, T) into a folder; zero where a row is padding."""
    states = torch.zeros(
        len(blocks), blocks.shape[-1], dense.get_output_embeddings().weight.shape[1], dtype=dense.dtype
    )
    for index in track(torch.arange(len(blocks)).split(BATCH), "the dense model"):
        found, _ = outputs_of(dense, blocks[index].to(dense.device))
        states[index, : found.shape[1]] = found.cpu()
    save_file({"states": states}, folder / STATES)


@torch.no_grad()
def outputs_of(model: PreTrainedModel, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last hidden states (B, T, D) and the logits (B, T, V) of blocks (B, T) or rows (B, 3, T), trimmed."""
    with head_input(model) as seen:
        logits = model(**model_inputs(blocks), use_cache=False).logits
    return seen[0], logits


@contextmanager
def head_input(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collect what the model's head is given while it runs: the last hidden states (B, T, D)."""
    seen: list[torch.Tensor] = []
    if isinstance(model, DistributedDataParallel):
        model = model.module
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def require_equal_widths(model: PreTrainedModel, dense: PreTrainedModel) -> None:
    """Raise where the hidden states of the two models cannot be compared."""
    own, wanted = (one.get_input_embeddings().embedding_dim for one in (model, dense))
    if own != wanted:
        raise ValueError(
            f"recovery.objective.hidden_weight: the pruned model's hidden width is {own}, the dense model's {wanted}: set it "
            "to 0, or leave `hidden` out of pruning.structures"
        )
