from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from evaluation.paired import compare_stage, mean_difference, paired_difference, read_outcomes
from pruning.files import write_json


def outcomes(right: list[float], begin: int = 0) -> dict[tuple[Any, ...], float]:
    return {(index + begin, "target"): value for index, value in enumerate(right)}


def noisy(count: int, seed: int) -> list[float]:
    draw = random.Random(seed)
    return [float(draw.random() < 0.5) for _ in range(count)]


def test_means_and_difference_are_over_the_items_that_both_have() -> None:
    one = paired_difference(outcomes([1, 0, 1, 1]), outcomes([1, 1, 0, 0, 1, 1], begin=1))
    assert (one.shared, one.only_first, one.only_second) == (3, 1, 3)
    assert one.first == pytest.approx(2 / 3)
    assert one.second == pytest.approx(2 / 3)
    assert one.difference == 0
    assert one.p_value == 1


def test_an_item_is_another_one_when_its_content_is() -> None:
    one = paired_difference({(0, "a"): 1.0, (1, "b"): 0.0}, {(0, "a"): 0.0, (1, "c"): 1.0})
    assert (one.shared, one.only_first, one.only_second) == (1, 1, 1)
    assert one.difference == -1


def test_runs_without_a_common_item_have_no_difference_but_are_reported() -> None:
    one = paired_difference(outcomes([1, 0]), outcomes([1, 1, 1], begin=10))
    assert (one.shared, one.only_first, one.only_second) == (0, 2, 3)
    assert all(map(math.isnan, (one.first, one.second, one.difference, one.low, one.high)))
    assert one.p_value is None


def test_pairing_is_sharper_than_comparing_two_means() -> None:
    first = noisy(400, seed=0)
    second = [1.0 - value if index % 40 == 0 else value for index, value in enumerate(first)]  # ten items differ
    one = paired_difference(outcomes(first), outcomes(second))
    unpaired = 1.96 * math.sqrt(2 * 0.25 / 400)
    assert one.high - one.low < unpaired
    assert one.low <= one.difference <= one.high


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for seed in range(100):
        draw = random.Random(seed)
        first = noisy(80, seed)
        second = [value if draw.random() < 0.7 else float(draw.random() < 0.5) for value in first]
        one = paired_difference(outcomes(first), outcomes(second))
        held += one.low <= 0 <= one.high
    assert 88 <= held <= 100


def test_the_mean_over_tasks_weighs_tasks_equally_and_not_items() -> None:
    large = outcomes([0.0] * 90), outcomes([0.0] * 90)
    small = outcomes([0.0] * 10), outcomes([1.0] * 10)
    one = mean_difference([large, small])
    assert one.first == 0
    assert one.second == one.difference == one.low == one.high == 0.5
    assert one.shared == 100


def test_the_interval_of_the_mean_is_narrower_than_that_of_its_tasks() -> None:
    tasks = [(outcomes(noisy(60, seed)), outcomes(noisy(60, seed + 100))) for seed in range(7)]
    widths = [one.high - one.low for one in (paired_difference(*task) for task in tasks)]
    one = mean_difference(tasks)
    expected = math.sqrt(sum(width**2 for width in widths)) / len(widths)  # of independent tasks
    assert one.high - one.low == pytest.approx(expected, rel=0.15)


def test_a_stage_has_its_tasks_the_mean_of_seven_and_its_texts() -> None:
    names = ("piqa (acc)", "hellaswag (acc_norm)", "lambada_openai (acc)", "loss, wikipedia@128")
    found = compare_stage({name: outcomes([1, 0]) for name in names}, {name: outcomes([1, 1]) for name in names[1:]})
    assert list(found) == [*names[1:]]
    found = compare_stage({name: outcomes([1, 0]) for name in names}, {name: outcomes([1, 1]) for name in names})
    assert list(found) == [*names[:3], "mean of seven", names[3]]
    assert found["mean of seven"].shared == 4


def test_outcomes_are_read_as_a_run_keeps_them(tmp_path: Path) -> None:
    items = [
        {"doc_id": 3, "target": "0", "choices": [" a", " b"], "loglikelihoods": [-1, -2], "acc": 1.0, "acc_norm": 0.0},
        {"doc_id": 4, "target": "1", "choices": [" c", " d"], "loglikelihoods": [-1, -2], "acc": 0.0, "acc_norm": 1.0},
    ]
    kept = {"metrics": {"acc": 0.5, "acc_norm": 0.5, "stderr": 0.5, "n": 2}, "outcomes": items}
    write_json(tmp_path / "zeroshot" / "hellaswag.json", {"dense": kept, "pruned": kept})
    write_json(tmp_path / "zeroshot" / "piqa.json", {"dense": kept})
    text = {"blocks": "0abc", "loss_sums": [10.0, 20.0], "correct": [1, 2], "tokens_per_block": 5}
    write_json(tmp_path / "texts" / "passages@6.json", {"dense": text})
    write_json(tmp_path / "texts" / "probe.json", {"dense": text})
    found = read_outcomes(tmp_path)
    assert list(found) == ["dense", "pruned"]
    assert found["dense"]["piqa (acc)"] == {(3, "0", " a", " b"): 1.0, (4, "1", " c", " d"): 0.0}
    assert found["dense"]["hellaswag (acc_norm)"] == {(3, "0", " a", " b"): 0.0, (4, "1", " c", " d"): 1.0}
    assert found["dense"]["loss, passages@6"] == {("0abc", 0): 2.0, ("0abc", 1): 4.0}
    assert found["dense"]["token accuracy, probe"] == {("0abc", 0): 0.2, ("0abc", 1): 0.4}
    assert list(found["pruned"]) == ["hellaswag (acc_norm)"]
