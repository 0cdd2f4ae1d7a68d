"""Twin recoveries of tiny models: what is trained on what, what the metrics come to, and that the gap is met."""

from __future__ import annotations

import copy
import logging
import math
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from evaluation.algorithmic_stability.config import Sampling, Twins
from evaluation.algorithmic_stability.twins import Train, TwinReport, recover_twins, warn_of_disagreement
from evaluation.perplexity import score_text
from pruning.cache import Cache
from pruning.model import fingerprint
from recovery.lora import Lora
from recovery.task import RecoveryTask

PREFIX = "algorithmic_stability/"


def texts(count: int, length: int = 12, words: int = 20) -> torch.Tensor:
    """Random letters: nothing to learn but the examples themselves. (N, T)."""
    return torch.randint(2, 2 + words, (count, length), generator=torch.Generator().manual_seed(0))


class ReadingLog:
    """A recovery that keeps what it was given, and shifts the embedding of every token it reads."""

    def __init__(self) -> None:
        self.given: list[tuple[list[list[int]], int, Path]] = []

    def __call__(self, model: PreTrainedModel, blocks: torch.Tensor, seed: int, cache: Cache) -> None:
        self.given.append((blocks.tolist(), seed, cache.root))
        shift = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for token, count in zip(*blocks.unique(return_counts=True), strict=True):
                model.get_input_embeddings().weight[token] += 0.01 * count * shift


def recorded(model: PreTrainedModel, cache: Cache, config: Twins, pool: torch.Tensor) -> tuple[ReadingLog, TwinReport]:
    train = ReadingLog()
    return train, recover_twins(config, model, pool, train=train, score=score_text, seed=5, cache=cache)


def test_twins_read_what_the_base_reads_but_for_the_swapped_slots(llama: PreTrainedModel, cache: Cache) -> None:
    before = fingerprint(llama)
    pool = texts(12 + 3 * 2)
    train, report = recorded(llama, cache, Twins(twins=3, swapped=2, epochs=2), pool)
    assert fingerprint(llama) == before
    (base, *twins, rerun, other) = train.given
    assert len(base[0]) == 24
    assert base[1:] == (5, cache.root)
    for (blocks, seed, root), out, into in zip(twins, report.coupling.removed, report.coupling.fresh, strict=True):
        assert (seed, root) == (5, cache.root)
        replaced = {tuple(pool[a].tolist()): pool[b].tolist() for a, b in zip(out, into, strict=True)}
        assert blocks == [replaced.get(tuple(block), block) for block in base[0]]
        assert sum(one != two for one, two in zip(blocks, base[0], strict=True)) == 4  # 2 slots, read twice each
    assert rerun[:2] == base[:2]
    assert rerun[2] != cache.root
    assert other[1] != 5
    assert other[0] != base[0]
    assert sorted(other[0]) == sorted(base[0])


def test_the_metrics_are_those_of_the_trained_models(llama: PreTrainedModel, cache: Cache) -> None:
    pool, config = texts(10 + 2 * 2), Twins(twins=2, swapped=2)
    train, report = recorded(llama, cache, config, pool)
    models = []
    for blocks, seed, root in train.given:
        models.append(copy.deepcopy(llama))
        ReadingLog()(models[-1], torch.tensor(blocks), seed, Cache(root))

    def loss(model: PreTrainedModel, example: int) -> float:
        with torch.no_grad():
            return model(input_ids=pool[example : example + 1], labels=pool[example : example + 1]).loss.item()

    base, first, second, _, other = models
    direct, symmetric = [], []
    for twin, out, into in zip((first, second), report.coupling.removed, report.coupling.fresh, strict=True):
        direct.append(sum(loss(twin, z) - loss(base, z) for z in out) / 2)
        symmetric.append(sum(loss(base, z) - loss(twin, z) for z in into) / 2)
    found = {name.removeprefix(PREFIX): value for name, value in report.metrics().items()}
    assert found["examples"] == 10
    assert found["aas_direct"] == pytest.approx(sum(direct) / 2, abs=1e-5)
    assert found["aas_symmetric"] == pytest.approx(sum(symmetric) / 2, abs=1e-5)
    assert found["aas"] == pytest.approx((sum(direct) + sum(symmetric)) / 4, abs=1e-5)
    assert found["aas_direct_stderr"] == pytest.approx(abs(direct[0] - direct[1]) / 2, abs=1e-5)
    changes = [abs(loss(twin, z) - loss(base, z)) for twin in (first, second) for z in range(14)]
    assert found["uas_lb"] == pytest.approx(max(changes), abs=1e-5)
    assert found["other_seed/uas_lb"] == pytest.approx(
        max(abs(loss(other, z) - loss(base, z)) for z in range(14)), abs=1e-5
    )
    weights = [model.get_input_embeddings().weight.detach() for model in (llama, base, first, second)]
    moved = (weights[1] - weights[0]).norm()
    distances = [((weight - weights[1]).norm() / moved).item() for weight in weights[2:]]
    assert found["arg_rel"] == pytest.approx(sum(distances) / 2, rel=1e-4)
    assert found["never_read"] == 0


def test_an_exact_rerun_is_at_zero_and_another_seed_is_not(llama: PreTrainedModel, cache: Cache) -> None:
    _, report = recorded(llama, cache, Twins(twins=2, swapped=1), texts(8))
    metrics = report.metrics()
    for measure in ("aas", "uas_lb", "uas_q99", "arg_rel"):
        assert metrics[f"{PREFIX}rerun/{measure}"] == 0
        assert metrics[f"{PREFIX}other_seed/{measure}"] != 0


def test_a_twin_whose_slots_are_never_read_counts_as_zero(llama: PreTrainedModel, cache: Cache) -> None:
    config = Twins(twins=6, swapped=1, sampling=Sampling.with_replacement)
    train, report = recorded(llama, cache, config, texts(12))
    read = [twin[0] != train.given[0][0] for twin in train.given[1:7]]
    assert 0 < sum(read) < 6
    assert report.metrics()[f"{PREFIX}never_read"] == pytest.approx(1 - sum(read) / 6)
    assert [twin.distance > 0 for twin in report.twins] == read
    distances = [twin.distance for twin in report.twins]
    assert report.metrics()[f"{PREFIX}arg_rel"] == pytest.approx(sum(distances) / 6)
    rows = report.details()["twins"]
    assert [not math.isnan(row["first_reads"][0]) for row in rows] == read


@pytest.mark.parametrize(("gap", "warns"), [(0.5, False), (0.9, True)])
def test_estimates_that_do_not_agree_with_the_gap_are_pointed_at(
    gap: float, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    found = {"aas": 0.3, "aas_stderr": 0.06, "gap": gap, "gap_stderr": 0.08}  # together 0.1
    with caplog.at_level(logging.WARNING):
        warn_of_disagreement({PREFIX + name: value for name, value in found.items()})
    assert ("should agree" in caplog.text) == warns


def lora_training(recovery: Lora, fails_at: int | None = None) -> Train:
    """Return a recovery by LoRA which fails at the given training, as where a process is killed."""
    trainings = 0

    def train(model: PreTrainedModel, blocks: torch.Tensor, seed: int, cache: Cache) -> None:
        nonlocal trainings
        trainings += 1
        if trainings == fails_at:
            raise KeyboardInterrupt
        every = recovery.steps_after(0, 1)
        task = RecoveryTask(blocks, every, seed, teacher=lambda: pytest.fail("no teacher is needed"))
        recovery.recover(model, task, cache, log=lambda _: None)

    return train


def test_a_killed_measurement_goes_on_with_the_training_it_was_at(llama: PreTrainedModel, cache: Cache) -> None:
    recovery = Lora(steps=2, batch_size=4, micro_batch_size=4, length=12, learning_rate=1e-2, dropout=0.1)
    config, pool = Twins(twins=2, swapped=1), texts(8 + 2)

    def finish(train: Train) -> dict[str, float]:
        return recover_twins(config, llama, pool, train=train, score=score_text, seed=0, cache=cache).metrics()

    def trained(root: Path) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (root / "adapters").iterdir() if path.is_dir()}

    with pytest.raises(KeyboardInterrupt):
        finish(lora_training(recovery, fails_at=3))
    done = trained(cache.root)
    assert len(done) == 2
    metrics = finish(lora_training(recovery))
    everything = trained(cache.root)
    assert len(everything) == 4  # base, two twins, the other seed
    assert everything.items() >= done.items()
    assert len(trained(cache.root / "rerun")) == 1
    assert finish(lora_training(recovery)) == metrics
    assert trained(cache.root) == everything
    assert metrics[f"{PREFIX}rerun/uas_lb"] == metrics[f"{PREFIX}rerun/arg_rel"] == 0
    assert 0 < metrics[f"{PREFIX}arg_rel"] < metrics[f"{PREFIX}other_seed/arg_rel"]


@pytest.mark.slow
@pytest.mark.parametrize("sampling", list(Sampling))
def test_on_average_stability_is_the_measured_generalization_gap(
    sampling: Sampling, llama: PreTrainedModel, cache: Cache
) -> None:
    """Sixteen blocks of random letters are learned by heart: nothing is there to generalise."""
    config = Twins(twins=5, swapped=3, epochs=20, sampling=sampling)
    pool = texts(16 + 5 * 3)
    recovery = Lora(r=16, alpha=32, dropout=0.0, learning_rate=1e-2, warmup_steps=5, steps=40, length=12)
    train = lora_training(recovery)
    report = recover_twins(config, llama, pool, train=train, score=score_text, seed=0, cache=cache)
    found = {name.removeprefix(PREFIX): value for name, value in report.metrics().items()}
    gap = report.base[report.coupling.fresh].mean() - report.base[report.coupling.examples].mean()
    assert found["gap"] == pytest.approx(gap, abs=0.3)  # which also has how hard the examples are by chance
    assert found["gap"] > 8 * found["gap_stderr"]
    for estimate in ("aas", "aas_direct", "aas_symmetric"):
        error = math.hypot(found[f"{estimate}_stderr"], found["gap_stderr"])
        assert abs(found[estimate] - found["gap"]) < 3 * error, found
        assert error < 0.2 * found["gap"], found
    assert found["uas_lb"] >= found["uas_q99"] > found["aas"]
    assert found["rerun/arg_rel"] == 0
