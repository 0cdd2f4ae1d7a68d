from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from evaluation.stability import StabilityConfig, stability_summary
from tests.evaluation.probes import CONFIG, event, noisy_probe, three_events


def test_summary_over_three_events() -> None:
    found = stability_summary(three_events(), CONFIG)
    assert found["stability/instability_mean/tok_acc"] == pytest.approx((0.2 + 0.6 + 0.25) / 3)
    assert found["stability/instability_max/tok_acc"] == pytest.approx(0.6)
    assert found["stability/instability_sum/tok_acc"] == pytest.approx(1.05)
    assert found["stability/instability_last/tok_acc"] == pytest.approx(0.25)
    assert found["stability/instability_per_ratio/tok_acc"] == pytest.approx(1.05 / 0.27)
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


def test_a_divergence_is_summed_up_like_an_instability() -> None:
    events = [replace(one, divergence=[0.1 * (one.index + 1)] * 4) for one in three_events()]
    found = stability_summary(events, CONFIG)
    assert found["stability/instability_mean/kl"] == pytest.approx(0.2)
    assert found["stability/instability_last/kl"] == pytest.approx(0.3)


def test_where_nothing_stays_removed_there_is_no_instability_per_ratio() -> None:
    back = [replace(one, ratio_reached=0.0) for one in three_events()]
    assert math.isnan(stability_summary(back, CONFIG)["stability/instability_per_ratio/tok_acc"])


def test_intervals_over_events_draw_the_same_blocks_for_all_of_them() -> None:
    levels = [(0.5, 0.4), (0.45, 0.3), (0.42, 0.33)]
    probes = [[noisy_probe(level, 2.0, 10 * index + place) for place, level in enumerate(pair)]
              for index, pair in enumerate(levels)]  # fmt: skip
    events = [event(index, pre, post, post) for index, (pre, post) in enumerate(probes)]
    found = stability_summary(events, StabilityConfig(resamples=4000, confidence=0.9))
    draw = random.Random(2)
    by_hand: dict[str, list[float]] = {"mean": [], "max": [], "sum": [], "last": []}
    for _ in range(4000):
        blocks = draw.choices(range(40), k=40)
        drops = []
        for one in events:
            pre, post = (sum(moment.text.correct[block] for block in blocks) for moment in (one.pre, one.post))
            drops.append((pre - post) / pre)
        for kind, value in (("mean", sum(drops) / 3), ("max", max(drops)), ("sum", sum(drops)), ("last", drops[-1])):
            by_hand[kind].append(value)
    for kind, values in by_hand.items():
        values.sort()
        low, high = values[200], values[3799]
        name = f"stability/instability_{kind}/tok_acc"
        assert found[f"{name}_low"] == pytest.approx(low, abs=0.1 * (high - low)), name
        assert found[f"{name}_high"] == pytest.approx(high, abs=0.1 * (high - low)), name


def test_a_run_that_cuts_nothing_has_no_stability() -> None:
    assert stability_summary([], CONFIG) == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [("confidence", 0.0), ("confidence", 1.0), ("confidence", 95), ("blocks", 1), ("length", 1), ("resamples", 0)],
)
def test_a_value_out_of_range_is_an_error_that_names_key_and_value(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"stability\.{key}={value}: must be"):
        StabilityConfig(**{key: value})  # type: ignore[arg-type]
