"""A training that diverges is stopped, says so, and leaves the last good state; one that overfits is ended at its best."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import pytest
import torch
from transformers import PreTrainedModel

from pruning.cache import Cache
from pruning.model import fingerprint
from recovery.divergence import has_diverged
from recovery.full import FullFineTuning
from recovery.lora import Lora
from recovery.objectives import Objective
from recovery.watching import scorings_since_best
from tests.recovery.trainings import SMALL, loss, recover, text


@dataclass
class BreaksAfter(Objective):
    """Language modelling whose loss is NaN from some step on."""

    batches: int = 0
    seen: list[int] = field(default_factory=list)

    def batch_loss(self, model, blocks, teacher, cache, computing):
        inner = super().batch_loss(model, blocks, teacher, cache, computing)

        def broken(model, batch, items):
            self.seen.append(1)
            return inner(model, batch, items) * (math.nan if len(self.seen) > self.batches else 1)

        return broken


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([3.0], False),
        ([math.nan], True),
        ([3.0, math.inf], True),
        ([3.0] * 5 + [2.0] * 5 + [3.9] * 5, False),
        ([3.0] * 5 + [2.0] * 5 + [4.1] * 5, True),
        ([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 3.0, 3.0], False),
        ([3.0] * 9 + [12.0], False),  # one odd batch
        ([3.0] * 5 + [14.0, 3.0, 3.0, 3.0, 3.0], True),
        ([3.0, 9.0, 9.0, 9.0], False),  # too few to tell
    ],
)
def test_what_counts_as_divergence(losses: list[float], diverged: bool) -> None:
    assert has_diverged(losses) == diverged


@pytest.mark.parametrize("kind", [Lora, FullFineTuning])
def test_the_state_before_the_bad_step_is_taken(
    llama: PreTrainedModel, cache: Cache, caplog: pytest.LogCaptureFixture, kind: type
) -> None:
    options = SMALL | {"scheduler": "constant_with_warmup"}
    twin = copy.deepcopy(llama)
    report, logged = recover(llama, kind(**options, objective=BreaksAfter(batches=2 * 7)), cache)  # micro-batches
    assert report.diverged
    assert report.metrics()["recovery/diverged"] == 1
    assert report.taken_step == 6  # the weights after 7 steps gave no number
    assert len(logged) == 8
    assert "diverged at step 8" in caplog.text
    assert "after step 6" in caplog.text
    good, _ = recover(twin, kind(**options), cache, steps=range(6))
    assert not good.diverged
    assert fingerprint(llama) == fingerprint(twin)


def test_a_rate_far_too_high_is_noticed(llama: PreTrainedModel, cache: Cache) -> None:
    before = loss(llama, text(Lora(**SMALL)))
    report, _ = recover(llama, Lora(**SMALL | {"steps": 20, "learning_rate": 100.0}), cache)
    assert report.diverged
    assert report.taken_step < 19
    assert loss(llama, text(Lora(**SMALL))) < before + 3


def test_a_model_that_is_broken_before_training_is_an_error(llama: PreTrainedModel, cache: Cache) -> None:
    llama.model.norm.weight.data[0] = torch.nan
    with pytest.raises(RuntimeError, match=r"cannot begin: the loss of the model is nan"):
        recover(llama, Lora(**SMALL), cache)
    assert not [path for path in (cache.root / "adapters").iterdir() if path.suffix not in (".lock", ".unfinished")]


def test_patience_takes_the_best_state_and_ends_early(llama: PreTrainedModel, cache: Cache) -> None:
    options = SMALL | {"learning_rate": 6e-2, "scheduler": "constant_with_warmup", "watch_every": 2}
    unlike = {"validation": torch.randint(2, 258, (6, 16), generator=torch.Generator().manual_seed(1))}
    twin = copy.deepcopy(llama)
    report, logged = recover(llama, Lora(**options, patience=2), cache, watched=unlike)
    found = [row["validation/loss"] for row in report.trajectory]
    best = found.index(min(found))
    assert report.taken_step == 2 * best
    assert len(found) == best + 3  # it waited for two scorings
    assert len(logged) == 2 * (len(found) - 1) < 12
    assert not report.diverged
    whole, _ = recover(twin, Lora(**options), cache, watched=unlike)
    assert report.trajectory == whole.trajectory[: len(found)]
    assert loss(llama, unlike["validation"]) == pytest.approx(min(found), rel=1e-4)


def test_without_patience_the_last_state_is_taken_however_bad(llama: PreTrainedModel, cache: Cache) -> None:
    unlike = {"validation": torch.randint(2, 258, (6, 16), generator=torch.Generator().manual_seed(1))}
    report, _ = recover(llama, Lora(**SMALL, watch_every=2), cache, watched=unlike)
    assert report.taken_step == 12
    assert loss(llama, unlike["validation"]) == pytest.approx(report.trajectory[-1]["validation/loss"], rel=1e-4)


def test_how_long_ago_the_best_was() -> None:
    assert scorings_since_best([3.0]) == 0
    assert scorings_since_best([3.0, 2.0, 2.0, math.nan]) == 2
    assert scorings_since_best([3.0, 2.0, 1.0]) == 0


def test_patience_needs_scorings() -> None:
    with pytest.raises(ValueError, match=r"recovery\.patience=2: needs recovery\.watch_every"):
        Lora(patience=2)
    assert Lora().validation_needed() == (0, 0)
    assert Lora(patience=2, watch_every=5, validation_blocks=7, length=32).validation_needed() == (7, 32)
