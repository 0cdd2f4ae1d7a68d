from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from evaluation.event import (
    EventReport,
    instability,
    point_means,
    recovered_fraction,
    stability_percent,
)
from evaluation.perplexity import TextScore
from evaluation.probe import Probe, TaskItems
from evaluation.stability import StabilityConfig
from evaluation.statistics import resampled_means
from tests.evaluation.probes import CONFIG, event, noisy_probe, probe, text


def test_accuracy_instability_is_the_drop_relative_to_what_was_there() -> None:
    assert instability("tok_acc", 0.5, 0.4) == pytest.approx(0.2)
    assert instability("zeroshot", 0.4, 0.5) == pytest.approx(-0.25)


def test_accuracy_stability_is_the_percentage_retained_and_can_exceed_100() -> None:
    assert stability_percent("tok_acc", 0.5, 0.4) == pytest.approx(80)
    assert stability_percent("zeroshot", 0.4, 0.5) == pytest.approx(125)


@pytest.mark.parametrize(("pre", "post"), [(0.5, 0.1), (0.3, 0.3), (0.2, 0.45)])
def test_stability_is_100_minus_100_times_instability(pre: float, post: float) -> None:
    assert stability_percent("tok_acc", pre, post) == pytest.approx(100 - 100 * instability("tok_acc", pre, post))


def test_loss_instability_is_the_rise_in_nats_and_above_0_when_worse() -> None:
    assert instability("loss", 2.0, 3.5) == pytest.approx(1.5)
    assert instability("loss", 3.5, 2.0) == pytest.approx(-1.5)


def test_loss_stability_is_that_of_one_over_the_perplexity() -> None:
    assert stability_percent("loss", 2.0, 3.5) == pytest.approx(100 * math.exp(2.0) / math.exp(3.5))


@pytest.mark.parametrize("name", ["tok_acc", "zeroshot", "loss"])
def test_post_equal_to_pre_is_zero_instability_and_full_stability(name: str) -> None:
    assert instability(name, 0.37, 0.37) == 0
    assert stability_percent(name, 0.37, 0.37) == 100


def test_an_accuracy_of_zero_before_the_cut_has_no_instability() -> None:
    assert math.isnan(instability("tok_acc", 0.0, 0.1))
    assert math.isnan(stability_percent("tok_acc", 0.0, 0.1))


def test_recovered_fraction_is_the_part_of_the_damage_undone() -> None:
    assert recovered_fraction(0.5, 0.3, 0.4) == pytest.approx(0.5)
    assert recovered_fraction(0.5, 0.3, 0.3) == 0
    assert recovered_fraction(0.5, 0.3, 0.55) == pytest.approx(1.25)
    assert recovered_fraction(2.0, 4.0, 2.5) == pytest.approx(0.75)
    assert math.isnan(recovered_fraction(0.5, 0.5, 0.6))


def test_event_metrics_hold_the_three_moments_and_the_figures_of_every_measure() -> None:
    found = event(0, probe(0.5, 2.0, 0.6), probe(0.4, 3.0, 0.3), probe(0.5, 2.5, 0.5)).metrics(CONFIG)
    assert [found[f"event/tok_acc/{when}"] for when in ("pre", "post", "rec")] == pytest.approx([0.5, 0.4, 0.5])
    assert [found[f"event/loss/{when}"] for when in ("pre", "post", "rec")] == pytest.approx([2.0, 3.0, 2.5])
    assert [found[f"event/zeroshot/{when}"] for when in ("pre", "post", "rec")] == pytest.approx([0.6, 0.3, 0.5])
    assert found["event/instability/zeroshot"] == pytest.approx(0.5)
    assert found["event/stability_pct/zeroshot"] == pytest.approx(50)
    assert found["event/drop/zeroshot"] == pytest.approx(30)
    assert found["event/drop/tok_acc"] == pytest.approx(10)
    assert found["event/recovered_frac/loss"] == pytest.approx(0.5)
    assert (found["event/index"], found["event/ratio_asked"], found["event/ratio_reached"]) == (0, 0.1, 0.09)
    assert "event/instability/kl" not in found


def test_without_zeroshot_probes_there_are_no_zeroshot_metrics() -> None:
    found = event(0, probe(0.5, 2.0), probe(0.4, 3.0), probe(0.5, 2.5)).metrics(CONFIG)
    assert not [name for name in found if "zeroshot" in name]


def two_tasks(right: int) -> Probe:
    tasks = {"piqa": TaskItems([1.0] * right + [0.0] * (40 - right), 0.5), "boolq": TaskItems([1.0, 0.0] * 20, 0.3)}
    return Probe(text([5] * 4), tasks)


def test_the_chance_corrected_twin_counts_from_the_level_of_chance() -> None:
    found = event(0, two_tasks(38), two_tasks(28), two_tasks(28)).metrics(CONFIG)
    pre, post, chance = (38 / 40 + 0.5) / 2, (28 / 40 + 0.5) / 2, (0.5 + 0.3) / 2
    assert found["event/instability/zeroshot"] == pytest.approx((pre - post) / pre)
    assert found["event/instability/zeroshot_cc"] == pytest.approx((pre - post) / (pre - chance))
    assert found["event/stability_pct/zeroshot_cc"] == pytest.approx(100 * (post - chance) / (pre - chance))


def test_near_chance_before_the_cut_there_is_no_chance_corrected_figure() -> None:
    errors = [statistics.stdev([1.0] * right + [0.0] * (40 - right)) / 40**0.5 for right in (21, 20)]
    above = (21 / 40 + 0.5) / 2 - 0.4
    assert 0 < above < 2 * math.hypot(*errors) / 2  # by the formula for a mean of two
    found = event(0, two_tasks(21), two_tasks(15), two_tasks(15)).metrics(CONFIG)
    assert math.isnan(found["event/instability/zeroshot_cc"])
    assert math.isnan(found["event/instability/zeroshot_cc_low"])
    assert found["event/instability/zeroshot"] > 0


def test_a_recovered_fraction_of_damage_within_noise_is_undefined() -> None:
    def blocks(change: int) -> EventReport:
        before = [50, 60, 40, 55, 45, 50, 62, 38]
        noise = [4, -4, 4, -4, 4, -4, 4, -4]
        after = [value + jitter - change for value, jitter in zip(before, noise, strict=True)]
        probes = [Probe(text(correct, tokens=100)) for correct in (before, after, before)]
        return event(0, *probes)

    error = statistics.stdev([4 - 2, -4 - 2] * 4) / 8**0.5  # of the paired differences, in tokens of a block
    assert 2 < 2 * error < 4
    assert math.isnan(blocks(2).metrics(CONFIG)["event/recovered_frac/tok_acc"])
    assert blocks(4).metrics(CONFIG)["event/recovered_frac/tok_acc"] == pytest.approx(1)
    assert math.isnan(blocks(-4).metrics(CONFIG)["event/recovered_frac/tok_acc"])


def noisy_event() -> EventReport:
    pre, post, rec = noisy_probe(0.5, 2.0, 1), noisy_probe(0.35, 3.0, 2), noisy_probe(0.45, 2.4, 3)
    divergence = [0.5 + 0.01 * (block % 7) for block in range(40)]
    return replace(event(0, pre, post, rec), divergence=divergence)


def quantiles(values: list[float], confidence: float) -> tuple[float, float]:
    values = sorted(values)
    tail = (1 - confidence) / 2
    return values[round(tail * len(values))], values[round((1 - tail) * len(values)) - 1]


def test_intervals_agree_with_a_paired_stratified_bootstrap_by_hand() -> None:
    one = noisy_event()
    draw = random.Random(5)
    found: dict[str, list[float]] = {name: [] for name in ("tok_acc", "loss", "zeroshot", "recovered", "drop", "kl")}
    for _ in range(3000):
        blocks = draw.choices(range(40), k=40)
        pre, post, rec = (sum(moment.text.correct[i] for i in blocks) for moment in (one.pre, one.post, one.rec))
        found["tok_acc"].append((pre - post) / pre)
        found["drop"].append(100 * (pre - post) / 4000)
        found["recovered"].append((rec - post) / (pre - post))
        losses = [sum(moment.text.loss_sums[i] for i in blocks) / 4000 for moment in (one.pre, one.post)]
        found["loss"].append(losses[1] - losses[0])
        found["kl"].append(sum(0.5 + 0.01 * (i % 7) for i in blocks) / 40)
        totals = [0.0, 0.0]
        for task, size in (("piqa", 30), ("boolq", 50)):
            items = draw.choices(range(size), k=size)
            for place, moment in enumerate((one.pre, one.post)):
                assert moment.zeroshot is not None
                totals[place] += sum(moment.zeroshot[task].outcomes[i] for i in items) / size
        found["zeroshot"].append((totals[0] - totals[1]) / totals[0])
    metrics = one.metrics(StabilityConfig(resamples=3000, confidence=0.9))
    names = {"recovered": "recovered_frac/tok_acc", "drop": "drop/tok_acc"}
    for name, values in found.items():
        full = f"event/{names.get(name, f'instability/{name}')}"
        low, high = quantiles(values, 0.9)
        width = high - low
        assert metrics[full + "_low"] < metrics[full] < metrics[full + "_high"]
        assert metrics[full + "_low"] == pytest.approx(low, abs=0.12 * width), full
        assert metrics[full + "_high"] == pytest.approx(high, abs=0.12 * width), full


def test_the_same_blocks_are_drawn_before_and_after() -> None:
    before = [10, 90, 20, 80, 30, 70, 40, 60]
    pre, post = (Probe(text([value // half for value in before], tokens=100)) for half in (1, 2))
    found = event(0, pre, post, post).metrics(CONFIG)
    assert found["event/instability/tok_acc_low"] == pytest.approx(0.5)
    assert found["event/instability/tok_acc_high"] == pytest.approx(0.5)


def test_intervals_narrow_with_more_blocks_and_with_less_confidence() -> None:
    def width(blocks: int, confidence: float) -> float:
        probes = [noisy_probe(level, 2.0, seed, blocks) for seed, level in enumerate((0.5, 0.4, 0.4))]
        found = event(0, *probes).metrics(StabilityConfig(resamples=400, confidence=confidence))
        return found["event/instability/tok_acc_high"] - found["event/instability/tok_acc_low"]

    assert width(400, 0.95) < width(100, 0.95) < width(16, 0.95)
    assert width(100, 0.5) < width(100, 0.95)


def test_resampled_figures_are_those_of_the_formulas_applied_to_every_resample() -> None:
    one = noisy_event()
    resampled = one.figures(partial(resampled_means, resamples=20))
    samples = [moment.observations()["loss"] for moment in (one.pre, one.post)]
    pre, post = resampled_means(samples, 20)
    assert resampled["instability/loss"] == pytest.approx(post - pre)
    assert set(resampled) == set(one.figures(point_means))
    assert all(np.shape(values) == (20,) for values in resampled.values())


def curve(*values: float, start: int = 40, every: int = 5) -> list[dict[str, float]]:
    return [
        {"step": start + every * index, "probe/tok_acc": value, "probe/loss": 3.0} for index, value in enumerate(values)
    ]


def test_steps_to_recover_are_counted_from_the_beginning_of_the_training_after_the_event() -> None:
    done = replace(
        event(1, probe(0.5, 2.0), probe(0.3, 3.0), probe(0.5, 3.0)), trajectory=curve(0.3, 0.38, 0.42, 0.41, 0.49)
    )
    found = done.metrics(CONFIG)
    assert found["event/steps_to_half/tok_acc"] == 10  # 0.42 is the first above 0.4
    assert found["event/steps_to_90pct/tok_acc"] == 20  # 0.49 the first above 0.48
    assert math.isnan(found["event/steps_to_half/loss"])  # which stays where it was


def test_steps_to_recover_are_unknown_without_a_trajectory_or_damage() -> None:
    watched = curve(0.5, 0.6)
    whole = replace(event(0, probe(0.5, 2.0), probe(0.5, 2.0), probe(0.6, 2.0)), trajectory=watched)
    unwatched = event(0, probe(0.5, 2.0), probe(0.3, 2.0), probe(0.6, 2.0))
    other = replace(unwatched, trajectory=[{"step": 0, "validation/loss": 2.0}, {"step": 5, "validation/loss": 1.0}])
    for one in (whole, unwatched, other):
        assert math.isnan(one.metrics(CONFIG)["event/steps_to_half/tok_acc"])


def test_a_probe_has_the_values_of_its_text_and_the_mean_of_its_tasks() -> None:
    score = TextScore([12.0, 18.0], [4, 2], 10)
    found = Probe(score, {"piqa": TaskItems([1, 0], 0.5), "boolq": TaskItems([1, 1, 1, 0], 0.5)}).measures()
    assert found == pytest.approx({"tok_acc": score.token_accuracy, "loss": score.loss, "zeroshot": 0.625})
