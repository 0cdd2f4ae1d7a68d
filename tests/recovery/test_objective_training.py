"""Objectives in a training: what they bring about, what they depend on, and that a step's shape does not matter."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from pruning.cache import Cache
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.model import fingerprint
from pruning.packing import Example, model_inputs, to_rows
from pruning.surgery import cut
from pruning.units import PruningPlan
from recovery.lora import Lora
from recovery.objectives import Distillation
from recovery.task import RecoveryTask
from tests.recovery.trainings import SMALL

DRAW = torch.Generator().manual_seed(0)
TEXT = torch.randint(2, 258, (48, 16), generator=DRAW)


@pytest.fixture
def pruned(llama: PreTrainedModel) -> PreTrainedModel:
    model = copy.deepcopy(llama)
    layout = find_layout(model)
    kept = {f"layers.{index}.mlp": tuple(range(4)) for index in range(4)}
    cut(model, layout, find_units(model, layout), PruningPlan(kept, 0.1, 0.1))
    return model


def task(blocks: torch.Tensor, dense: PreTrainedModel, steps: int) -> RecoveryTask:
    return RecoveryTask(blocks, range(steps), 0, teacher=lambda: dense)


def say_nothing(row: dict[str, float]) -> None:
    pass


def disagreement(model: PreTrainedModel, dense: PreTrainedModel) -> float:
    """Mean KL(dense || model), nats per token."""
    with torch.no_grad():
        own, wanted = (one(input_ids=TEXT).logits.log_softmax(-1) for one in (model, dense))
    return float((wanted.exp() * (wanted - own)).sum(-1).mean())


def test_distillation_brings_the_pruned_model_back_to_the_dense_one(
    pruned: PreTrainedModel, llama: PreTrainedModel, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    recovery = Lora(**SMALL | {"steps": 24, "learning_rate": 3e-3}, dropout=0.0, objective=Distillation(weight=1.0))
    before, twin = disagreement(pruned, llama), copy.deepcopy(pruned)
    report = recovery.recover(pruned, task(TEXT.repeat(2, 1), llama, 24), cache, say_nothing)
    assert disagreement(pruned, llama) < 0.75 * before
    assert report.train_loss < before
    assert report.seconds > 0
    monkeypatch.setattr("recovery.distillation.teacher_outputs", lambda *_: pytest.fail("asked again"))
    again = recovery.recover(twin, task(TEXT.repeat(2, 1), llama, 24), cache, say_nothing)
    assert fingerprint(twin) == fingerprint(pruned)
    assert again.seconds == report.seconds


def test_another_dense_model_is_another_training(pruned: PreTrainedModel, llama: PreTrainedModel, cache: Cache) -> None:
    recovery, twin = Lora(**SMALL | {"steps": 2}, objective=Distillation(weight=1.0)), copy.deepcopy(pruned)
    other = copy.deepcopy(llama)
    with torch.no_grad():
        other.model.norm.weight.mul_(3)
    recovery.recover(pruned, task(TEXT, llama, 2), cache, say_nothing)
    recovery.recover(twin, task(TEXT, other, 2), cache, say_nothing)
    assert fingerprint(twin) != fingerprint(pruned)


@pytest.mark.parametrize("pure", [True, False], ids=["text", "distillation"])
def test_the_forward_passes_of_a_step_may_be_any(
    pruned: PreTrainedModel, llama: PreTrainedModel, cache: Cache, pure: bool
) -> None:
    """Examples of unequal length, one in a row: a mean of means would weigh the short ones more."""
    sizes = [2, 13, 4, 9, 3, 12, 11, 2]
    rows = to_rows([[Example([5, 6], [7 + i, *range(30, 30 + size)])] for i, size in enumerate(sizes)], 16, 1)
    losses, found = [], []
    for micro in (1, 4):
        model = copy.deepcopy(pruned)
        options = {"steps": 2, "micro_batch_size": micro, "dropout": 0.0}
        objective = {} if pure else {"objective": Distillation(weight=0.5)}
        report = Lora(**SMALL | options | objective).recover(model, task(rows, llama, 2), cache, say_nothing)
        losses.append(report.train_loss)
        with torch.no_grad():
            found.append(model(**model_inputs(rows)).logits)
        assert report.tokens == sum(sizes) + 3 * len(sizes)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        assert (pruned(**model_inputs(rows)).logits - found[0]).abs().max() > 0.05
