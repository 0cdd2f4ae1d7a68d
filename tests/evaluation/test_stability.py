from __future__ import annotations

import math
import random

import pytest

from evaluation.perplexity import TextScore
from evaluation.stability import (
    EventReport,
    Probe,
    StabilityConfig,
    accuracy_instability_interval,
    generalization_summary,
    instability,
    recovered_fraction,
    stability_percent,
    stability_summary,
)

CONFIG = StabilityConfig(resamples=200)


def text(correct: list[int], loss: float = 2.0, tokens: int = 10) -> TextScore:
    return TextScore([loss * tokens] * len(correct), correct, tokens)


def probe(accuracy: float, loss: float, zeroshot: float | None = None) -> Probe:
    return Probe(text([round(accuracy * 10)] * 4, loss), zeroshot)


def event(index: int, pre: Probe, post: Probe, rec: Probe) -> EventReport:
    return EventReport(index, 0.1 * (index + 1), 0.09 * (index + 1), pre, post, rec)


def blocks_before_and_after(count: int) -> tuple[TextScore, TextScore]:
    draw = random.Random(count)
    before = [draw.randint(40, 60) for _ in range(count)]
    after = [value - draw.randint(0, 25) for value in before]
    return text(before, tokens=100), text(after, tokens=100)


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


def test_loss_stability_is_that_of_the_probability_of_a_token() -> None:
    assert stability_percent("loss", 2.0, 2.0 + math.log(4)) == pytest.approx(25)


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


def test_recovered_fraction_without_damage_is_undefined() -> None:
    assert math.isnan(recovered_fraction(0.5, 0.5, 0.6))


def test_interval_contains_the_point_estimate() -> None:
    pre, post = blocks_before_and_after(20)
    low, high = accuracy_instability_interval(pre, post, 0.95, 500)
    point = (sum(pre.correct) - sum(post.correct)) / sum(pre.correct)
    assert low < point < high


def test_interval_is_the_same_every_time() -> None:
    pre, post = blocks_before_and_after(20)
    assert accuracy_instability_interval(pre, post, 0.9, 200) == accuracy_instability_interval(pre, post, 0.9, 200)


def test_interval_agrees_with_a_bootstrap_by_hand() -> None:
    pre, post = blocks_before_and_after(30)
    draw = random.Random(0)
    estimates = []
    for _ in range(4000):
        chosen = [draw.randrange(30) for _ in range(30)]
        before = sum(pre.correct[block] for block in chosen)
        after = sum(post.correct[block] for block in chosen)
        estimates.append((before - after) / before)
    estimates.sort()
    low, high = accuracy_instability_interval(pre, post, 0.9, 4000)
    assert low == pytest.approx(estimates[200], abs=0.006)
    assert high == pytest.approx(estimates[3800], abs=0.006)


def test_interval_draws_the_same_blocks_before_and_after() -> None:
    before = [10, 90, 20, 80, 30, 70, 40, 60]
    pre, post = text(before, tokens=100), text([value // 2 for value in before], tokens=100)
    assert accuracy_instability_interval(pre, post, 0.95, 300) == pytest.approx((0.5, 0.5))


def test_interval_narrows_with_more_blocks_and_with_less_confidence() -> None:
    def width(count: int, confidence: float) -> float:
        low, high = accuracy_instability_interval(*blocks_before_and_after(count), confidence, 400)
        return high - low

    assert width(400, 0.95) < width(100, 0.95) < width(16, 0.95)
    assert width(100, 0.5) < width(100, 0.95)


def test_event_metrics_hold_the_three_moments_of_every_measure() -> None:
    found = event(0, probe(0.5, 2.0, 0.6), probe(0.4, 3.0, 0.3), probe(0.5, 2.5, 0.45)).metrics(CONFIG)
    assert [found[f"event/tok_acc/{when}"] for when in ("pre", "post", "rec")] == [0.5, 0.4, 0.5]
    assert [found[f"event/loss/{when}"] for when in ("pre", "post", "rec")] == [2.0, 3.0, 2.5]
    assert [found[f"event/zeroshot/{when}"] for when in ("pre", "post", "rec")] == [0.6, 0.3, 0.45]
    assert found["event/instability/zeroshot"] == pytest.approx(0.5)
    assert found["event/stability_pct/zeroshot"] == pytest.approx(50)
    assert found["event/recovered_frac/loss"] == pytest.approx(0.5)
    assert (found["event/index"], found["event/ratio_asked"], found["event/ratio_reached"]) == (0, 0.1, 0.09)


def test_without_zeroshot_probes_there_are_no_zeroshot_metrics() -> None:
    found = event(0, probe(0.5, 2.0), probe(0.4, 3.0), probe(0.5, 2.5)).metrics(CONFIG)
    assert not [name for name in found if "zeroshot" in name]


def three_events() -> list[EventReport]:
    return [
        event(0, probe(0.5, 2.0), probe(0.4, 2.5), probe(0.5, 2.1)),  # drops 0.2 and 0.5
        event(1, probe(0.5, 2.1), probe(0.2, 4.1), probe(0.4, 3.1)),  # drops 0.6 and 2.0
        event(2, probe(0.4, 3.1), probe(0.3, 3.6), probe(0.4, 3.5)),  # drops 0.25 and 0.5
    ]


def test_summary_over_three_events_is_their_mean_largest_and_sum() -> None:
    found = stability_summary(three_events(), CONFIG)
    assert found["stability/instability_mean/tok_acc"] == pytest.approx((0.2 + 0.6 + 0.25) / 3)
    assert found["stability/instability_max/tok_acc"] == pytest.approx(0.6)
    assert found["stability/instability_sum/tok_acc"] == pytest.approx(1.05)
    assert found["stability/pct_mean/tok_acc"] == pytest.approx((80 + 40 + 75) / 3)
    assert found["stability/instability_mean/loss"] == pytest.approx(1.0)
    assert found["stability/instability_max/loss"] == pytest.approx(2.0)
    assert found["stability/instability_sum/loss"] == pytest.approx(3.0)
    kept = [100 * math.exp(-drop) for drop in (0.5, 2.0, 0.5)]
    assert found["stability/pct_mean/loss"] == pytest.approx(sum(kept) / 3)


def test_summary_takes_the_recovered_fraction_of_the_last_event() -> None:
    found = stability_summary(three_events(), CONFIG)
    assert found["stability/recovered_frac/tok_acc"] == pytest.approx(1.0)
    assert found["stability/recovered_frac/loss"] == pytest.approx(0.2)


def test_summary_gives_an_interval_for_one_event_only() -> None:
    one = stability_summary(three_events()[:1], CONFIG)
    assert one["stability/instability/tok_acc_low"] <= 0.2 + 1e-9
    assert one["stability/instability/tok_acc_high"] >= 0.2 - 1e-9
    assert "stability/instability/tok_acc_low" not in stability_summary(three_events(), CONFIG)


def test_a_run_that_cuts_nothing_has_no_stability() -> None:
    assert stability_summary([], CONFIG) == {}


def test_gain_is_above_0_when_the_pruned_model_ends_better_than_the_control() -> None:
    better, worse = probe(0.6, 2.0, 0.7), probe(0.5, 2.3, 0.6)
    gain = generalization_summary(better, worse, None, None)
    assert gain["generalization/gain/tok_acc"] == pytest.approx(0.1)
    assert gain["generalization/gain/loss"] == pytest.approx(0.3)
    assert gain["generalization/gain/zeroshot"] == pytest.approx(0.1)
    loss = generalization_summary(worse, better, None, None)
    assert all(loss[name] == pytest.approx(-gain[name]) for name in gain if "/gain/" in name)


def test_the_final_level_is_that_of_the_recovered_model() -> None:
    found = generalization_summary(probe(0.6, 2.0, 0.7), probe(0.5, 2.3, 0.6), None, None)
    assert found["generalization/final/tok_acc"] == pytest.approx(0.6)
    assert found["generalization/final/loss"] == pytest.approx(2.0)
    assert found["generalization/final/zeroshot"] == pytest.approx(0.7)


def test_a_control_without_zeroshot_gives_no_zeroshot_gain() -> None:
    found = generalization_summary(probe(0.6, 2.0, 0.7), probe(0.5, 2.3), None, None)
    assert "generalization/gain/zeroshot" not in found
    assert "generalization/gain/loss" in found


def test_gap_is_above_0_when_training_text_is_predicted_better_than_held_out_text() -> None:
    found = generalization_summary(probe(0.6, 2.0), probe(0.5, 2.3), text([7, 7], 1.5), text([5, 5], 2.0))
    assert found["generalization/gap/loss"] == pytest.approx(0.5)
    assert found["generalization/gap/tok_acc"] == pytest.approx(0.2)


def test_without_recovery_there_is_no_gap() -> None:
    found = generalization_summary(probe(0.6, 2.0), probe(0.5, 2.3), None, text([5, 5], 2.0))
    assert not [name for name in found if "/gap/" in name]


@pytest.mark.parametrize(
    ("key", "value"),
    [("confidence", 0.0), ("confidence", 1.0), ("confidence", 95), ("blocks", 1), ("length", 1), ("resamples", 0)],
)
def test_a_value_out_of_range_is_an_error_that_names_key_and_value(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"stability\.{key}={value}: must be"):
        StabilityConfig(**{key: value})  # type: ignore[arg-type]
