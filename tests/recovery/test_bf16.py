"""Training with matrix products in bfloat16: what is computed in which type, and what it comes to."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from pruning.cache import Cache
from recovery.full import FullFineTuning
from recovery.lora import Lora
from recovery.trained import TrainedRecovery
from tests.recovery.trainings import SMALL, loss, recover, text

EACH_KIND = pytest.mark.parametrize("kind", [Lora, FullFineTuning])


@EACH_KIND
def test_what_is_learnt_from_is_computed_in_bfloat16_and_what_is_scored_is_not(
    llama: PreTrainedModel, cache: Cache, kind: type[TrainedRecovery]
) -> None:
    seen: set[tuple[bool, torch.dtype]] = set()
    up = llama.model.layers[0].mlp.up_proj
    up.register_forward_hook(lambda module, _, out: seen.add((module.training, out.dtype)))
    options = SMALL | {"steps": 2, "watch_every": 1}
    recover(llama, kind(**options, bf16=True), cache, watched={"train": text(kind(**options))})
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert {weight.dtype for weight in llama.parameters()} == {torch.float32}


@EACH_KIND
def test_it_learns_nearly_what_float32_learns(
    llama: PreTrainedModel, cache: Cache, kind: type[TrainedRecovery]
) -> None:
    exact, blocks = copy.deepcopy(llama), text(kind(**SMALL))
    before = loss(llama, blocks)
    report, _ = recover(llama, kind(**SMALL, bf16=True), cache)
    wanted, _ = recover(exact, kind(**SMALL), cache)
    won = before - loss(exact, blocks)
    assert won > 0.3
    assert before - loss(llama, blocks) == pytest.approx(won, rel=0.05)
    assert report.train_loss != wanted.train_loss  # two entries in the cache
    assert report.train_loss == pytest.approx(wanted.train_loss, rel=0.05)
