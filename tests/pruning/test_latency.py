"""A latency target: exact with a clock that is made up, and one real run of a tiny model."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import PreTrainedModel

from pruning import latency
from pruning.allocation import Allocator
from pruning.cache import Cache
from pruning.config import LatencyConfig, PruningConfig, RatioOf
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.importance.random import RandomImportance
from pruning.kinds import UnitKind as K
from pruning.latency import find_amount, paired_quotient, relative_prefill
from pruning.model import count_parameters
from pruning.surgery import cut
from pruning.units import PruningPlan
from tests.pruning.allocate import NO_SAMPLES, config
from tests.zoo import build


class FakeClock:
    """Time that passes only while something is done, more of it while the machine is busy."""

    def __init__(self) -> None:
        self.now = 0.0
        self.load = 1.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += self.load * seconds


def size_as_time(overhead: float = 0.0):
    """Return a stand-in for timing: time is proportional to parameters, with a part that never goes."""

    def relative(model: PreTrainedModel, candidate: PreTrainedModel, options: LatencyConfig) -> float:
        one, other = (count_parameters(which) for which in (model, candidate))
        return overhead + (1 - overhead) * other / one

    return relative


def prune(model: PreTrainedModel, options: PruningConfig, cache: Cache, *ratios: float) -> list[PruningPlan]:
    layout, plans = find_layout(model), []
    allocator = Allocator(options, model, layout, cache)
    for ratio in ratios or (options.ratio,):
        groups = allocator.touched(find_units(model, layout))
        scores = RandomImportance().score(model, groups, None)
        plan = allocator.plan(model, groups, scores, ratio, NO_SAMPLES)
        cut(model, layout, groups, plan)
        plans.append(plan)
    return plans


def options_for(ratio: float, tolerance: float = 0.004, **options: object) -> PruningConfig:
    return config(ratio=ratio, ratio_of=RatioOf.latency, latency=LatencyConfig(tolerance=tolerance), **options)


@pytest.mark.parametrize("ratio", [0.03, 0.12, 0.25])
def test_the_time_asked_for_is_met_and_no_more(
    llama: PreTrainedModel, cache: Cache, monkeypatch: pytest.MonkeyPatch, ratio: float
) -> None:
    monkeypatch.setattr(latency, "relative_prefill", size_as_time())
    before = count_parameters(llama)
    (plan,) = prune(llama, options_for(ratio), cache)
    assert plan.ratio_asked == ratio
    assert plan.ratio_reached == pytest.approx(1 - count_parameters(llama) / before)
    assert plan.ratio_reached == pytest.approx(ratio, abs=0.004)


def test_events_are_cumulative_fractions_of_the_dense_models_time(
    llama: PreTrainedModel, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "relative_prefill", size_as_time())
    before = count_parameters(llama)
    plans = prune(llama, options_for(0.24), cache, 0.08, 0.16, 0.24)
    assert [plan.ratio_reached for plan in plans] == pytest.approx([0.08, 0.16, 0.24], abs=0.004)
    assert plans[-1].ratio_reached == pytest.approx(1 - count_parameters(llama) / before)


def test_the_same_plan_is_made_again_without_timing_anything(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "relative_prefill", size_as_time())
    first = prune(build("llama_gqa_tied"), options_for(0.2), cache, 0.1, 0.2)
    monkeypatch.setattr(latency, "relative_prefill", None)
    assert prune(build("llama_gqa_tied"), options_for(0.2), cache, 0.1, 0.2) == first


def test_another_machine_measures_again(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "relative_prefill", size_as_time())
    prune(build("llama_gqa_tied"), options_for(0.2), cache)
    monkeypatch.setattr(latency.platform, "node", lambda: "another")
    monkeypatch.setattr(latency, "relative_prefill", size_as_time(0.2))
    with pytest.raises(ValueError, match="cannot be reached"):
        prune(build("llama_gqa_tied"), options_for(0.42), cache)


def test_a_time_that_cannot_be_reached_is_refused_before_any_work_and_says_the_least(
    llama: PreTrainedModel, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "relative_prefill", size_as_time(0.5))
    with pytest.raises(ValueError, match=r"pruning\.ratio=0\.5 \(of latency\).*takes 0\.\d+ of the dense") as error:
        Allocator(options_for(0.5), llama, find_layout(llama), cache)
    least = float(str(error.value).split("takes ")[1].split()[0])
    highest = float(str(error.value).split("at most ")[1].split()[0].rstrip("."))
    assert least + highest == pytest.approx(1, abs=2e-3)
    (plan,) = prune(llama, options_for(highest - 0.01), cache)
    assert plan.ratio_reached == pytest.approx(highest - 0.01, abs=0.004)


def test_coarse_units_come_as_near_as_they_can_and_say_so(
    llama: PreTrainedModel, cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(latency, "relative_prefill", size_as_time())
    share = (1 - 258 * 32 / count_parameters(llama)) / 4  # of one of four layers
    with caplog.at_level(logging.WARNING):
        (plan,) = prune(llama, options_for(0.5, structures=[K.layer], protect_first=0, protect_last=0), cache)
    assert plan.ratio_reached == pytest.approx(2 * share, abs=1e-3)
    assert "farther than pruning.latency.tolerance=0.004" in caplog.text


def test_the_first_pair_and_a_busy_moment_do_not_count() -> None:
    clock = FakeClock()
    calls = []

    def reference() -> None:
        calls.append("reference")
        clock.load = {3: 50.0, 6: 8.0}.get(len(calls), clock.load)
        clock.work(2.0)

    def other() -> None:
        calls.append("other")
        clock.work(1.5 if len(calls) > 2 else 100.0)

    assert paired_quotient(reference, other, 5, clock) == pytest.approx(0.75)
    assert len(calls) == 12
    assert calls[:4] == ["reference", "other", "other", "reference"]


def test_a_load_that_drifts_falls_on_both() -> None:
    clock = FakeClock()

    def work(seconds: float) -> None:
        clock.load *= 1.02
        clock.work(seconds)

    found = paired_quotient(lambda: work(2.0), lambda: work(1.0), 8, clock)
    assert found == pytest.approx(0.5, rel=0.001)


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("asked", [0.05, 0.3, 0.77])
def test_the_search_finds_the_amount_of_any_rising_curve_in_few_measurements(power: float, asked: float) -> None:
    measured = []

    def measure(amount: int) -> float:
        measured.append(amount)
        return 0.8 * (amount / 100_000) ** power

    found = find_amount(asked, 100_000, 10, measure, 0.002)
    assert 0.8 * (found / 100_000) ** power == pytest.approx(asked, abs=0.002)
    assert len(measured) <= 18


def test_the_search_stands_noise() -> None:
    generator = torch.Generator().manual_seed(0)

    def measure(amount: int) -> float:
        return amount / 1000 + 0.005 * float(torch.randn(1, generator=generator))

    assert find_amount(0.4, 1000, 1, measure, 0.02) / 1000 == pytest.approx(0.4, abs=0.04)


@pytest.mark.slow  # real timings, which a busy machine spoils
def test_a_real_model_gets_faster_by_losing_half_of_its_layers(llama: PreTrainedModel, cache: Cache) -> None:
    timing = LatencyConfig(batch_size=2, tokens=32, repetitions=5, tolerance=0.1)
    options = config(ratio=0.3, ratio_of=RatioOf.latency, structures=[K.layer], protect_first=0, protect_last=0)
    options.latency = timing
    dense = build("llama_gqa_tied")
    (plan,) = prune(llama, options, cache)
    assert 1 <= llama.config.num_hidden_layers < 4
    assert 0.05 < plan.ratio_reached < 0.8
    assert relative_prefill(dense, llama, timing) < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, r"pruning\.latency\.tolerance=0\.0: must be in \(0, 1\)"),
        ({"repetitions": 0}, r"pruning\.latency\.repetitions=0: must be at least 1"),
        ({"tokens": 0}, r"pruning\.latency\.tokens=0: must be at least 1"),
        ({"batch_size": 0}, r"pruning\.latency\.batch_size=0: must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatencyConfig(**options)  # type: ignore[arg-type]
