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
from recovery.base import RecoveryReport, When
from recovery.lora import Lora
from recovery.none import NoRecovery

SMALL = {"steps": 12, "batch_size": 4, "micro_batch_size": 2, "length": 16, "learning_rate": 1e-2, "warmup_steps": 1}


def loss(model: PreTrainedModel, blocks: torch.Tensor) -> float:
    with torch.no_grad():
        return model(input_ids=blocks, labels=blocks).loss.item()


def text(recovery: Lora) -> torch.Tensor:
    """Counting modulo 20: easy to learn."""
    count, length = recovery.blocks_needed()
    starts = torch.randint(20, (count, 1), generator=torch.Generator().manual_seed(0))
    return (starts + torch.arange(length)) % 20 + 2


def recover(model: PreTrainedModel, recovery: Lora, cache: Cache, **options: int) -> tuple[RecoveryReport, list]:
    logged: list[dict[str, float]] = []
    arguments = {"part": 0, "parts": 1, "seed": 0} | options
    report = recovery.recover(model, text(recovery), cache=cache, log=logged.append, **arguments)
    return report, logged


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
    assert report.steps == 12
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


def test_parts_share_out_all_steps_and_all_text(llama: PreTrainedModel, cache: Cache) -> None:
    recovery = Lora(**SMALL | {"steps": 7, "when": When.each})
    parts = recovery.parts(3)
    trainings = [recover(llama, recovery, cache, part=part, parts=parts) for part in range(parts)]
    reports = [report for report, _ in trainings]
    assert [report.steps for report in reports] == [2, 2, 3]
    assert [point["recovery/step"] for _, logged in trainings for point in logged] == list(range(1, 8))
    assert sum(report.tokens for report in reports) == text(recovery).numel()


def test_recovery_at_the_end_has_one_part() -> None:
    assert Lora(when=When.last).parts(5) == 1
    assert Lora(when=When.each).parts(0) == 1


def test_divergence_is_an_error_and_nothing_is_kept(llama: PreTrainedModel, cache: Cache) -> None:
    llama.model.norm.weight.data[0] = torch.nan
    with pytest.raises(RuntimeError, match=r"diverged.*recovery\.learning_rate"):
        recover(llama, Lora(**SMALL), cache)
    assert not [path for path in (cache.root / "adapters").iterdir() if path.suffix != ".lock"]


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
    report = NoRecovery().recover(
        llama, torch.empty(0, 0), part=0, parts=1, seed=0, cache=cache, log=lambda _: pytest.fail("nothing to log")
    )
    assert fingerprint(llama) == before
    assert report.metrics()["recovery/steps"] == 0
