"""The walk of one run: measure, prune event by event, recover, measure again.

Nothing may happen to the model between the probes directly before and directly after a removal: they are what the
stability metric is made of.
"""

from __future__ import annotations

from contextlib import ExitStack

from evaluation.event import EventReport
from evaluation.generalization import gap_summary, generalization_summary
from evaluation.measure import staged
from evaluation.sizing import trial_instability
from evaluation.stability import stability_summary
from experiment.bench import Bench
from experiment.controls import random_control, recover_twins, unpruned_control
from pruning.allocation import NOTHING
from pruning.grouping import find_units
from pruning.importance.scoring import UnitScores
from pruning.removal import Event
from pruning.units import PruningPlan
from recovery.task import RecoveryReport, whole_report


def experiment(bench: Bench) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Walk through one run and return its metrics, and the trajectory of its recovery."""
    with bench.run.stage("dense"):
        dense = bench.evaluator.snapshot(bench.model)
        metrics, dense_probe = staged("dense", dense.measure()), dense.probe()
        bench.run.keep_outcomes("dense", dense.outcomes())
        metrics |= bench.flatness.measure("dense", bench.model)

    pruned_metrics, reports, events = prune_and_recover(bench)
    report = whole_report(reports)
    metrics |= pruned_metrics | report.metrics()
    if report.adapter:
        bench.run.keep_adapter(report.adapter)

    with bench.run.stage("recovered"):
        recovered = bench.evaluator.snapshot(bench.model)
        metrics |= staged("recovered", recovered.measure(bench.load_dense))
        bench.run.keep_outcomes("recovered", recovered.outcomes())
        metrics |= bench.flatness.measure("recovered", bench.model, report.adapter)
        metrics |= gap_summary({name: recovered.text(text) for name, text in bench.watched.items() if name != "probe"})

    control_metrics, control = unpruned_control(bench, [each.steps for each in reports])
    random_metrics, random = random_control(bench)

    metrics |= bench.nearness | control_metrics | random_metrics | stability_summary(events, bench.config.stability)
    metrics |= generalization_summary(recovered.probe(), dense_probe, control, random, bench.config.stability)
    return metrics, report.trajectory


def prune_and_recover(bench: Bench) -> tuple[dict[str, float], list[RecoveryReport], list[EventReport]]:
    """Carry out every event of the schedule on the bench's model, and the recovery where it is due.

    Nothing but the removal and its compensation happens to the model between the probes directly before and after.
    """
    config, run, model, evaluator = bench.config, bench.run, bench.model, bench.evaluator
    metrics: dict[str, float] = {}
    reports: list[RecoveryReport] = []
    events: list[EventReport] = []
    plan, progress = NOTHING, 0.0
    while plan.ratio_asked < config.pruning.ratio:
        trajectory: list[dict[str, float]] = []
        name, before = f"event {len(events) + 1}", progress
        with run.stage(f"{name}: choose"):
            scores, event = next_event(bench, len(events), plan)
        plan = event.plan
        progress = config.schedule.progress(len(events), plan.ratio_asked, config.pruning.ratio)
        lasting = config.removal.lasting(plan)
        with ExitStack() as removed:
            with run.stage(f"{name}: remove"):
                whole = evaluator.before_cut(model)
                pre = whole.probe()
                noise = removed.enter_context(config.removal.carried_out(model, event))
                pruned = evaluator.snapshot(model)
                post, divergence = pruned.probe(after_cut=True), pruned.divergence_from(whole)
                del whole  # which may hold a copy of the model
            if progress == 1:
                with run.stage("pruned"):
                    ratios = bench.chooser.allocator.ratios(model, lasting) | {"ratio_targeted": plan.ratio_reached}
                    sure = {f"scores/{name}": value for name, value in scores.metrics().items()}
                    metrics = staged("pruned", pruned.measure(bench.load_dense) | ratios | sure)
                    run.keep_outcomes("pruned", pruned.outcomes())
                    metrics |= bench.flatness.measure("pruned", model)
        if progress == 1:
            metrics |= recover_twins(bench)
        if steps := config.recovery.steps_after(before, progress):
            with run.stage(f"{name}: recover"):
                reports.append(bench.recover(model, steps, noise=noise))
                trajectory = reports[-1].trajectory
        with run.stage(f"{name}: probe"):
            rec = evaluator.snapshot(model).probe()
        reached = lasting.ratio_asked, lasting.ratio_reached
        events.append(EventReport(len(events), *reached, pre, post, rec, scores.metrics(), divergence, trajectory))
        row = events[-1].metrics(config.stability)
        run.add_event(row)
        bench.tracker.log(row)
    if not events and (steps := config.recovery.steps_after(0, 1)):
        metrics |= recover_twins(bench)
        with run.stage("recover"):
            reports.append(bench.recover(model, steps))
    return metrics, reports, events


def next_event(bench: Bench, index: int, earlier: PruningPlan) -> tuple[UnitScores, Event]:
    """Choose what the next event removes, after events that came as far as the plan `earlier`."""
    config, model, before = bench.config, bench.model, earlier.ratio_asked
    chooser = bench.chooser.for_trial() if config.removal.is_temporary else bench.chooser
    groups = chooser.allocator.touched(find_units(model, bench.layout))
    trial = trial_instability(bench.evaluator, chooser, model, groups, before, bench.tracker.log)
    ratio = config.schedule.next_ratio(index, before, config.pruning.ratio, trial)
    back = earlier if config.removal.is_temporary else NOTHING
    scores, plan, corrections = chooser.choose(model, groups, before, ratio, back)
    return scores, Event(bench.layout, groups, plan, back, corrections, seed=1000 * config.seed + index)
