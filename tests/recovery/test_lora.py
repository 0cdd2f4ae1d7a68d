"""LoRA recovery: it learns, it is merged, it is the same from the cache, and its parts add up."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from pruning.cache import Cache
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.model import fingerprint
from pruning.surgery import cut
from pruning.units import PruningPlan
from recovery.base import When
from recovery.lora import Lora
from recovery.none import NoRecovery
from recovery.task import RecoveryTask, whole_report
from tests.recovery.trainings import SMALL, loss, recover, text


def test_training_lowers_the_loss_of_a_pruned_model_and_leaves_no_adapter(llama: PreTrainedModel, cache: Cache) -> None:
    layout = find_layout(llama)
    kept = {"layers.1.mlp": (0, 1, 2), "layers.2.attention": (0, 3)}
    cut(llama, layout, find_units(llama, layout), PruningPlan(kept, 0.1, 0.1))
    names = [name for name, _ in llama.named_parameters()]
    blocks = text(Lora(**SMALL))
    before = loss(llama, blocks)
    report, logged = recover(llama, Lora(**SMALL), cache)
    assert loss(llama, blocks) < before - 0.3
    assert [name for name, _ in llama.named_parameters()] == names
    assert not llama.training
    assert all(parameter.requires_grad for parameter in llama.parameters())
    assert report.steps == range(12)
    assert report.tokens == 12 * 4 * 16
    assert [point["recovery/step"] for point in logged] == list(range(1, 13))
    assert (report.adapter / "adapter_model.safetensors").exists()


def test_trained_parameters_are_the_factors(llama: PreTrainedModel, cache: Cache) -> None:
    report, _ = recover(llama, Lora(**SMALL, r=2), cache)
    linears = [m for name, m in llama.named_modules() if name.endswith("_proj")]
    assert report.trained_parameters == sum(2 * (m.in_features + m.out_features) for m in linears)


def test_embeddings_norms_and_head_stay(llama: PreTrainedModel, cache: Cache) -> None:
    before = {name: p.clone() for name, p in llama.named_parameters() if "_proj" not in name}
    recover(llama, Lora(**SMALL), cache)
    assert all(torch.equal(llama.get_parameter(name), values) for name, values in before.items())


def test_from_the_cache_it_is_the_same_to_the_last_bit(llama: PreTrainedModel, cache: Cache) -> None:
    twin = copy.deepcopy(llama)
    first, logged = recover(llama, Lora(**SMALL), cache)
    second, logged_again = recover(twin, Lora(**SMALL), cache)
    assert fingerprint(llama) == fingerprint(twin)
    assert first == second
    assert logged == logged_again
    assert len(list((cache.root / "adapters").glob("*.lock"))) == 1


def test_the_same_seed_trains_to_the_same_weights_and_another_does_not(
    llama: PreTrainedModel, cache: Cache, tmp_path
) -> None:
    twins = [copy.deepcopy(llama) for _ in range(3)]
    for index, (twin, seed) in enumerate(zip(twins, (0, 0, 1), strict=True)):
        recover(twin, Lora(**SMALL), Cache(tmp_path / str(index)), seed=seed)
    first, again, other = map(fingerprint, twins)
    assert first == again
    assert first != other


def test_trainings_share_out_all_steps_and_all_text(llama: PreTrainedModel, cache: Cache) -> None:
    recovery = Lora(**SMALL | {"steps": 7, "when": When.each})
    due = [recovery.steps_after(event / 3, (event + 1) / 3) for event in range(3)]
    trainings = [recover(llama, recovery, cache, steps=steps) for steps in due]
    reports = [report for report, _ in trainings]
    assert [len(report.steps) for report in reports] == [2, 2, 3]
    assert [point["recovery/step"] for _, logged in trainings for point in logged] == list(range(1, 8))
    whole = whole_report(reports)
    assert (whole.steps, whole.tokens) == (range(7), text(recovery).numel())


def test_a_step_sees_its_own_blocks_only(llama: PreTrainedModel, cache: Cache) -> None:
    recovery = Lora(**SMALL)
    blocks = text(recovery)
    changed = blocks.clone()
    changed[: 3 * 4], changed[6 * 4 :] = 7, 7
    reports = [
        recover(copy.deepcopy(llama), recovery, cache, blocks=tokens, steps=range(3, 6))[0]
        for tokens in (blocks, changed)
    ]
    assert reports[0] == reports[1]


def test_watched_texts_are_scored_before_in_between_and_after(llama: PreTrainedModel, cache: Cache) -> None:
    recovery = Lora(**SMALL, watch_every=4)
    watched = {"probe": text(recovery)[:5], "other": text(recovery)[5:8].flip(1)}
    before = {name: loss(llama, blocks) for name, blocks in watched.items()}
    report, _ = recover(llama, recovery, cache, steps=range(3, 10), watched=watched)
    assert [row["step"] for row in report.trajectory] == [3, 4, 8, 10]
    for name, blocks in watched.items():
        assert report.trajectory[0][f"{name}/loss"] == pytest.approx(before[name], rel=1e-5)
        assert report.trajectory[-1][f"{name}/loss"] == pytest.approx(loss(llama, blocks), rel=1e-4)  # merged
        with torch.no_grad():
            right = llama(input_ids=blocks).logits[:, :-1].argmax(-1) == blocks[:, 1:]
        assert report.trajectory[-1][f"{name}/tok_acc"] == pytest.approx(right.float().mean().item(), abs=0.01)
    assert report.trajectory[-1]["probe/loss"] < report.trajectory[0]["probe/loss"] - 0.3


def test_watching_does_not_change_the_training(llama: PreTrainedModel, cache: Cache) -> None:
    twin = copy.deepcopy(llama)
    recover(llama, Lora(**SMALL), cache)
    recover(twin, Lora(**SMALL, watch_every=1), cache, watched={"probe": text(Lora(**SMALL))[:3]})
    assert fingerprint(llama) == fingerprint(twin)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"recovery\.steps=0: must be at least 1"),
        ({"batch_size": 6, "micro_batch_size": 4}, r"recovery\.micro_batch_size=4: must divide"),
        ({"dropout": 1.0}, r"recovery\.dropout=1\.0"),
        ({"learning_rate": 0.0}, r"recovery\.learning_rate=0\.0"),
    ],
)
def test_values_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lora(**options)


def test_none_changes_nothing(llama: PreTrainedModel, cache: Cache) -> None:
    before = fingerprint(llama)
    task = RecoveryTask(torch.empty(0, 0), range(0), 0, teacher=lambda: llama)
    report = NoRecovery().recover(llama, task, cache, log=lambda _: pytest.fail("nothing to log"))
    assert fingerprint(llama) == before
    assert report.metrics()["recovery/steps"] == 0
