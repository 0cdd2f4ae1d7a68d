"""Objectives: their losses against slow sums over tokens, and the dense model's outputs kept and running."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from pruning.cache import Cache
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.packing import Example, to_rows
from pruning.surgery import cut
from pruning.units import PruningPlan
from recovery.distillation import KeptTeacher, RunningTeacher, teacher_outputs
from recovery.head import is_last, run_body
from recovery.losses import TokenLoss
from recovery.objectives import Distillation, Objective, training_rows
from tests.zoo import build

TEXT = torch.randint(2, 258, (5, 12), generator=torch.Generator().manual_seed(0))
EXAMPLES = to_rows(
    [
        [Example([5, 6, 7], [8, 9, 10, 11]), Example([20, 21], [22, 23, 24])],
        [Example([30], [31, 32, 33, 34])],
        [Example([5, 6, 7], [8, 9, 10, 11]), Example([20, 21], [22, 23, 24])],
    ],
    14,
    1,
)


@pytest.fixture
def pruned(llama: PreTrainedModel) -> PreTrainedModel:
    model = copy.deepcopy(llama)
    layout = find_layout(model)
    cut(model, layout, find_units(model, layout), PruningPlan({"layers.1.mlp": (0, 1, 2)}, 0.1, 0.1))
    return model


def batch_of(blocks: torch.Tensor, *index: int) -> dict[str, torch.Tensor]:
    rows = training_rows(blocks)
    return {
        "blocks": torch.stack([rows[i]["blocks"] for i in index]),
        "index": torch.tensor(index),
        "labels": torch.stack([rows[i]["labels"] for i in index]),
    }


def loss_of(objective: Objective, model: PreTrainedModel, dense: PreTrainedModel, blocks: torch.Tensor, cache: Cache):
    return objective.batch_loss(model, blocks, lambda: dense, cache, lambda _: nullcontext())


def sequences(blocks: torch.Tensor, index: tuple[int, ...]) -> list[tuple[list[int], int]]:
    """The tokens of each example alone, and how many of them are only read."""
    if blocks.dim() == 2:
        return [(blocks[i].tolist(), 1) for i in index]
    found = []
    for ids, labels, segments in blocks[list(index)]:
        for number in range(1, int(segments.max()) + 1):
            own = segments == number
            found.append((ids[own].tolist(), int((labels[own] == -100).sum())))
    return found


@torch.no_grad()
def slow_loss(model: PreTrainedModel, dense: PreTrainedModel, blocks: torch.Tensor, index: tuple[int, ...], **o: float):
    """Token by token, each example alone, in float64: the mixed loss and the number of learnt tokens."""
    total, count = 0.0, 0
    for tokens, read in sequences(blocks, index):
        own, wanted = (one(torch.tensor([tokens]), output_hidden_states=True) for one in (model, dense))
        for place in range(read, len(tokens)):
            p = torch.softmax(wanted.logits[0, place - 1].double() / o["temperature"], 0)
            q = torch.softmax(own.logits[0, place - 1].double() / o["temperature"], 0)
            kl = sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
            nats = -math.log(torch.softmax(own.logits[0, place - 1].double(), 0)[tokens[place]])
            h, g = (one.hidden_states[-1][0, place - 1].double() for one in (own, wanted))
            total += o["weight"] * o["temperature"] ** 2 * kl + (1 - o["weight"]) * nats
            total += o["hidden_weight"] * float((h - g).square().sum() / g.square().sum())
            count += 1
    return total, count


@pytest.mark.parametrize("blocks", [TEXT, EXAMPLES], ids=["text", "examples"])
@pytest.mark.parametrize("store_gb", [1.0, 0.0], ids=["kept", "running"])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0, "weight": 1.0, "hidden_weight": 0.0},
        {"temperature": 2.5, "weight": 0.3, "hidden_weight": 0.0},
        {"temperature": 2.0, "weight": 0.5, "hidden_weight": 0.7},
    ],
)
def test_distillation_is_the_slow_sum(
    blocks: torch.Tensor,
    store_gb: float,
    options: dict[str, float],
    pruned: PreTrainedModel,
    llama: PreTrainedModel,
    cache: Cache,
) -> None:
    loss = loss_of(Distillation(store_gb=store_gb, **options), pruned, llama, blocks, cache)
    total, count = slow_loss(pruned, llama, blocks, (2, 1), **options)
    found = loss(pruned, batch_of(blocks, 2, 1), count)
    assert found.item() == pytest.approx(total / count, rel=1e-4)
    assert found.requires_grad


@pytest.mark.parametrize("blocks", [TEXT, EXAMPLES], ids=["text", "examples"])
def test_language_modelling_is_the_slow_sum(
    blocks: torch.Tensor, pruned: PreTrainedModel, llama: PreTrainedModel, cache: Cache
) -> None:
    loss = loss_of(Objective(), pruned, llama, blocks, cache)
    total, count = slow_loss(pruned, llama, blocks, (0, 1), temperature=1, weight=0, hidden_weight=0)
    assert loss(pruned, batch_of(blocks, 0, 1), count).item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("head_is_last", [True, False])
@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.0), (2.5, 0.3), (1.0, 0.5), (3.0, 1.0)])
def test_the_closed_gradient_is_autograds(
    temperature: float,
    weight: float,
    head_is_last: bool,
    pruned: PreTrainedModel,
    llama: PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("recovery.losses.ROWS", 5)  # 33 learnt tokens: seven parts, the last one short
    weights = [pruned.model.layers[0].mlp.up_proj.weight, pruned.model.norm.weight]
    pruned.lm_head.requires_grad_(False)
    loss = TokenLoss(head_is_last, RunningTeacher(llama), temperature, weight)
    found = torch.autograd.grad(loss(pruned, batch_of(TEXT, 0, 1, 2), 33), weights)
    student, teacher = (model(TEXT[:3]).logits[:, :-1].flatten(0, 1) for model in (pruned, llama))
    kl = F.kl_div(
        F.log_softmax(student / temperature, -1),
        F.log_softmax(teacher.detach() / temperature, -1),
        log_target=True,
        reduction="sum",
    )
    mixed = weight * temperature**2 * kl + (1 - weight) * F.cross_entropy(
        student, TEXT[:3, 1:].flatten(), reduction="sum"
    )
    for own, wanted in zip(found, torch.autograd.grad(mixed / 33, weights), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-7)


def test_a_head_that_is_trained_gets_its_gradient() -> None:
    model = build("llama_mha")  # its head is not tied
    assert model.lm_head.weight.requires_grad
    (found,) = torch.autograd.grad(TokenLoss(True)(model, batch_of(TEXT, 0), 11), model.lm_head.weight)
    (wanted,) = torch.autograd.grad(model(TEXT[:1], labels=TEXT[:1]).loss, model.lm_head.weight)
    torch.testing.assert_close(found, wanted)


def test_a_head_is_taken_apart_where_it_comes_last(llama: PreTrainedModel) -> None:
    assert is_last(llama, TEXT)
    assert not is_last(build("gemma2"), TEXT)  # caps its logits
    states = run_body(llama, TEXT)
    torch.testing.assert_close(llama.lm_head(states), llama(TEXT).logits)
    assert "forward" not in vars(llama.lm_head)
    replaced = llama.lm_head.forward
    llama.lm_head.forward = replaced  # as accelerate does
    assert torch.equal(run_body(llama, TEXT), states)
    assert llama.lm_head.forward is replaced


def test_the_dense_models_states_are_computed_as_the_training_computes(llama: PreTrainedModel, cache: Cache) -> None:
    exact = teacher_outputs(llama, TEXT, cache, 10**9)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = teacher_outputs(llama, TEXT, cache, 10**9)
    assert 0 < (exact.states - rounded.states).abs().max() < 0.1 * exact.states.abs().max()


def test_a_step_is_the_same_however_it_is_shared_out(
    pruned: PreTrainedModel, llama: PreTrainedModel, cache: Cache
) -> None:
    for objective in (Objective(), Distillation(weight=0.5)):
        loss = loss_of(objective, pruned, llama, EXAMPLES, cache)
        together = loss(pruned, batch_of(EXAMPLES, 0, 1), 16).item()
        apart = sum(loss(pruned, batch_of(EXAMPLES, index), 16).item() for index in (0, 1))
        assert together == pytest.approx(apart, rel=1e-5)


def test_the_dense_model_is_at_the_minimum_of_pure_distillation(llama: PreTrainedModel, cache: Cache) -> None:
    loss = loss_of(Distillation(weight=1.0, hidden_weight=1.0), llama, llama, TEXT, cache)
    found = loss(llama, batch_of(TEXT, 0, 1, 2), 33)
    found.backward()
    assert abs(found.item()) < 1e-6
    assert max(p.grad.abs().max() for p in llama.parameters() if p.grad is not None) < 1e-4


def test_kept_states_are_of_distinct_blocks_and_are_not_computed_again(
    llama: PreTrainedModel, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = TEXT[[0, 1, 0, 2, 1]]
    kept = teacher_outputs(llama, blocks, cache, 10**9)
    assert isinstance(kept, KeptTeacher)
    assert kept.states.shape == (3, 12, 32)
    monkeypatch.setattr("recovery.distillation.keep_states", lambda *_: pytest.fail("computed again"))
    again = teacher_outputs(llama, blocks, cache, 10**9)
    running = teacher_outputs(llama, blocks, cache, 3 * 12 * 32 * 4 - 1)
    assert isinstance(running, RunningTeacher)
    for index in ((3, 2), (4, 0)):
        batch = batch_of(blocks, *index)
        (states, logits), (wanted_states, wanted_logits) = again(batch), running(batch)
        torch.testing.assert_close(states, wanted_states, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits.of(slice(None)), wanted_logits.values, rtol=1e-4, atol=1e-5)
    assert teacher_outputs(llama, blocks, cache, 3 * 12 * 32 * 4).states.shape == (3, 12, 32)


def test_a_model_whose_logits_are_capped_after_the_head_runs_along(cache: Cache) -> None:
    assert isinstance(teacher_outputs(build("gemma2"), TEXT, cache, 10**9), RunningTeacher)


def test_hidden_states_of_unequal_widths_are_refused(llama: PreTrainedModel, cache: Cache) -> None:
    narrow = copy.deepcopy(llama)
    layout = find_layout(narrow)
    cut(narrow, layout, find_units(narrow, layout), PruningPlan({"hidden": tuple(range(24))}, 0.1, 0.1))
    with pytest.raises(ValueError, match=r"hidden_weight: the pruned model's hidden width is 24, the dense model's 32"):
        loss_of(Distillation(hidden_weight=0.1), narrow, llama, TEXT, cache)
    loss = loss_of(Distillation(weight=1.0), narrow, llama, TEXT, cache)
    assert torch.isfinite(loss(narrow, batch_of(TEXT, 0), 11))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, r"recovery\.objective\.temperature=0: must be above 0"),
        ({"weight": 1.5}, r"recovery\.objective\.weight=1\.5: must be in \[0, 1\]"),
        ({"hidden_weight": -1}, r"recovery\.objective\.hidden_weight=-1: must be at least 0"),
        ({"store_gb": -1}, r"recovery\.objective\.store_gb=-1: must be at least 0"),
        ({"weight": 0}, r"recovery\.objective\.weight=0: nothing is left to distill"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distillation(**options)
