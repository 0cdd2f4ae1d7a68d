"""What a run is compared with: unpruned and randomly pruned models given the same recovery, and twin recoveries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from evaluation.algorithmic_stability import twins
from evaluation.measure import staged
from evaluation.probe import Probe
from evaluation.random_control import prune_at_random
from experiment.bench import Bench
from pruning.cache import Cache


def unpruned_control(bench: Bench, trainings: list[range]) -> tuple[dict[str, float], Probe | None]:
    """Return metrics and probe of the unpruned model given the same trainings; nothing where it is not asked for."""
    if not bench.config.stability.control:
        return {}, None
    with bench.run.stage("control"):
        metrics, probe = recover_control(bench, bench.load_dense(), trainings)
    return staged("control", metrics), probe


def recover_control(bench: Bench, model: Any, trainings: list[range]) -> tuple[dict[str, float], Probe]:
    """Give a control the steps of some trainings, and return what is measured of it, without a stage, and its probe."""
    for steps in trainings:
        bench.recover(model, steps, silent=True)
    return bench.evaluator.snapshot(model).measure_control()


def random_control(bench: Bench) -> tuple[dict[str, float], Probe | None]:
    """Return metrics and probe of one-shot random pruning with the same recovery; nothing where it is not asked for."""
    config = bench.config
    if not (config.stability.random_control and config.pruning.ratio):
        return {}, None
    with bench.run.stage("random control"):
        model = bench.load_dense()
        plan = prune_at_random(model, bench.layout, bench.chooser, config.seed)
        trainings = [steps] if (steps := config.recovery.steps_after(0, 1)) else []
        metrics, probe = recover_control(bench, model, trainings)
    return staged("random_control", metrics | {"ratio_reached": plan.ratio_reached}), probe


def recover_twins(bench: Bench) -> dict[str, float]:
    """Train twin recoveries of the bench's model, which stays as it is, with all steps, and compare them."""
    config = bench.config
    if not isinstance(config.algorithmic_stability, twins.Twins):
        return {}

    def train(model: Any, blocks: torch.Tensor, seed: int, cache: Cache) -> None:
        own = replace(bench.texts, recovery=blocks)
        bench_of_twin = replace(bench, texts=own, cache=cache, config=replace(config, seed=seed), watched={})
        bench_of_twin.recover(model, config.recovery.steps_after(0, 1), silent=True)

    with bench.run.stage("twin recoveries"):
        report = twins.recover_twins(
            config.algorithmic_stability,
            bench.model,
            bench.twin_pool,
            train=train,
            score=lambda model, blocks: bench.evaluator.snapshot(model).text(blocks),
            seed=config.seed,
            cache=bench.cache,
        )
    bench.run.keep_outcomes("pruned", {"algorithmic_stability": report.details()})
    return report.metrics()
