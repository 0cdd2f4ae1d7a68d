from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch

from evaluation.precision import items_scored_twice, noise_metrics


def task_score(hits: list[float], nats: list[list[float | None]], n: int = 0, stderr: float = 0.1) -> dict[str, Any]:
    outcomes = [{"acc": hit, "loglikelihoods": values} for hit, values in zip(hits, nats, strict=True)]
    return {"metrics": {"acc": statistics.mean(hits), "stderr": stderr, "n": n or len(hits)}, "outcomes": outcomes}


NATS: list[list[float | None]] = [[-3.0, -4.0], [-2.0, -1.0], [-5.0, -5.5], [-1.0, -9.0]]


def test_the_floor_is_the_deviation_of_the_score_that_the_changed_items_make() -> None:
    scores = {"piqa": task_score([1, 0, 1, 1] + [0] * 12, NATS + [[-1.0, -2.0]] * 12)}
    alone = {"piqa": task_score([1, 1, 1, 0], [[-3.0, -4.25], [-2.0, -1.0], [-5.0, None], [-1.75, -9.0]])}
    found = noise_metrics(scores, alone)
    # Half of the four items change; were each of the 16 to move by +1 or -1 with probability 1/4 each:
    variance_of_an_item = 0.25 * 1 + 0.25 * 1
    assert found["zeroshot/piqa/noise_floor"] == pytest.approx(math.sqrt(16 * variance_of_an_item) / 16)
    assert found["zeroshot/piqa/noise_nats"] == pytest.approx(0.75)


def test_the_floor_of_the_mean_leaves_lambada_out() -> None:
    same, other = task_score([1, 0, 1, 1], NATS), task_score([0, 0, 1, 1], NATS)
    scores = {"piqa": same, "boolq": same, "lambada_openai": same}
    found = noise_metrics(scores, {"piqa": other, "boolq": other, "lambada_openai": other})
    floor = math.sqrt(1 / 4 / 4)
    assert found["zeroshot/lambada_openai/noise_floor"] == pytest.approx(floor)
    assert found["zeroshot/mean_noise_floor"] == pytest.approx(math.sqrt(2 * floor**2) / 2)


def test_normalised_tasks_are_judged_by_acc_norm() -> None:
    first, second = task_score([1, 0, 1, 1], NATS), task_score([0, 1, 0, 0], NATS)
    for score in (first, second):
        score["metrics"]["acc_norm"] = 1.0
        for outcome in score["outcomes"]:
            outcome["acc_norm"] = 1.0
    found = noise_metrics({"hellaswag": first, "piqa": first}, {"hellaswag": second, "piqa": second})
    assert found["zeroshot/hellaswag/noise_floor"] == 0
    assert found["zeroshot/piqa/noise_floor"] == pytest.approx(0.5)


def test_no_task_has_no_noise() -> None:
    assert noise_metrics({}, {}) == {}


@pytest.mark.parametrize(("stderr", "said"), [(2.4, True), (2.6, False)])
def test_noise_above_a_fifth_of_the_standard_error_is_said(
    stderr: float, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = task_score([1, 0, 1, 1], NATS, stderr=stderr), task_score([0, 1, 0, 0], NATS)
    noise_metrics({"piqa": first}, {"piqa": second})
    assert ("piqa: the shape of a batch alone moves the score by 0.500" in caplog.text) is said


def test_by_default_only_small_types_are_scored_twice() -> None:
    assert items_scored_twice(None, torch.float32) == 0
    assert items_scored_twice(None, torch.bfloat16) == items_scored_twice(None, torch.float16) == 25
    assert items_scored_twice(3, torch.float32) == 3
    assert items_scored_twice(0, torch.bfloat16) == 0
