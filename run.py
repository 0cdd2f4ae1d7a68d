"""Secateur: prune a language model, recover it, measure it. `python run.py --help`.

Hydra composes the configuration; `experiment` is the walk of one run; `job` keeps its folder: a finished run is skipped, a
failed one leaves its error, the result is written last.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Threads spin only shortly while they wait: as fast as the default alone, and twice as fast on a machine that is shared.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries, about each other
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
for bars in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
    os.environ.setdefault(bars, "1")  # the terminal belongs to the run's own display

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from conf import identity, schema
from evaluation.progress import run_display
from evaluation.publish import publish, republish
from evaluation.report import model_card, print_report
from evaluation.result import RunResult, describe_environment
from evaluation.run_folder import RunFolder
from evaluation.tracking import RunIdentity, Tracker, under_agent
from sweeps import command
from sweeps.objectives import objectives
from sweeps.time_limit import time_limit

if TYPE_CHECKING:
    from evaluation.measure import Evaluator
    from evaluation.stability import EventReport
    from pruning.cache import Cache
    from pruning.layout import DecoderLayout
    from pruning.rounds import Chooser
    from pruning.run_texts import RunTexts
    from recovery.base import RecoveryReport

log = logging.getLogger("secateur")


@dataclass
class Bench:
    """What one run works with. Made before any work, so that what is wrong with the input is found first."""

    config: schema.ExperimentConfig
    run: RunFolder
    tracker: Tracker
    cache: Cache
    device: str
    model: Any
    tokenizer: Any
    layout: DecoderLayout
    chooser: Chooser
    ratios: tuple[float, ...]
    parts: int
    """Number of trainings that the recovery is divided into."""

    texts: RunTexts
    nearness: dict[str, float]
    """Metrics that say how near each tested text is to `texts`."""

    evaluator: Evaluator

    def recover(self, model: Any, part: int, *, silent: bool = False) -> RecoveryReport:
        """Train one part of the recovery on `model`, in place."""
        return self.config.recovery.recover(
            model,
            self.texts.recovery,
            part=part,
            parts=self.parts,
            seed=self.config.seed,
            cache=self.cache,
            log=(lambda _: None) if silent else self.tracker.log,
        )


def experiment(bench: Bench) -> tuple[dict[str, float], list[EventReport]]:
    """Walk through one run and return its metrics and its pruning events."""
    from evaluation.measure import staged
    from evaluation.stability import generalization_summary, stability_summary

    with bench.run.stage("dense"):
        dense = bench.evaluator.snapshot(bench.model)
        metrics = staged("dense", dense.measure())
        bench.run.keep_outcomes("dense", dense.outcomes())

    pruned_metrics, report, events = prune_and_recover(bench)
    metrics |= pruned_metrics | report.metrics()
    if report.adapter:
        bench.run.keep_adapter(report.adapter)

    with bench.run.stage("recovered"):
        recovered = bench.evaluator.snapshot(bench.model)
        metrics |= staged("recovered", recovered.measure())
        bench.run.keep_outcomes("recovered", recovered.outcomes())
        texts = bench.texts
        train = recovered.text(texts.train_slice) if texts.train_slice is not None else None
        heldout = recovered.text(texts.heldout) if texts.heldout is not None else None

    with bench.run.stage("control"):
        control_model, _ = bench.config.model.load(bench.cache, bench.device)
        for part in range(bench.parts):
            bench.recover(control_model, part, silent=True)
        control = bench.evaluator.snapshot(control_model)
        control_metrics, control_probe = control.measure_control()
        metrics |= staged("control", control_metrics)

    metrics |= bench.nearness | stability_summary(events, bench.config.stability)
    return metrics | generalization_summary(recovered.probe(), control_probe, train, heldout), events


def prune_and_recover(bench: Bench) -> tuple[dict[str, float], RecoveryReport, list[EventReport]]:
    """Carry out every event of the schedule on the bench's model, and the recovery where it is due.

    Nothing but the cut and its compensation happens to the model between the probes directly before and after.
    """
    from evaluation.measure import staged
    from evaluation.stability import EventReport
    from pruning.compensation.apply import compensate
    from pruning.grouping import find_units
    from pruning.surgery import cut
    from recovery.base import When

    config, run, model, evaluator = bench.config, bench.run, bench.model, bench.evaluator
    metrics: dict[str, float] = {}
    events: list[EventReport] = []
    for index, (before, ratio) in enumerate(pairwise((0.0, *bench.ratios))):
        name, is_last = f"event {index + 1} of {len(bench.ratios)}", index == len(bench.ratios) - 1
        with run.stage(f"{name}: choose"):
            groups = bench.chooser.allocator.touched(find_units(model, bench.layout))
            scores, plan, corrections = bench.chooser.choose(model, groups, before, ratio)
        with run.stage(f"{name}: cut"):
            pre = evaluator.snapshot(model).probe()
            compensate(model, corrections)
            cut(model, bench.layout, groups, plan)
            pruned = evaluator.snapshot(model)
            post = pruned.probe()
        if is_last:
            with run.stage("pruned"):
                sure = {f"scores/{name}": value for name, value in scores.metrics().items()}
                metrics = staged("pruned", pruned.measure() | bench.chooser.allocator.ratios(model, plan) | sure)
                run.keep_outcomes("pruned", pruned.outcomes())
        if is_last or config.recovery.when is When.each:
            with run.stage(f"{name}: recover"):
                report = bench.recover(model, index if config.recovery.when is When.each else 0)
        with run.stage(f"{name}: probe"):
            rec = evaluator.snapshot(model).probe()
        event = EventReport(index, plan.ratio_asked, plan.ratio_reached, pre, post, rec, scores.metrics())
        events.append(event)
        row = event.metrics(config.stability)
        run.add_event(row)
        bench.tracker.log(row)
    if not events:
        with run.stage("recover"):
            report = bench.recover(model, 0)
    return metrics, report, events


def prepare(config: schema.ExperimentConfig, run: RunFolder, tracker: Tracker) -> Bench:
    """Load the model and the texts, and check that everything the configuration asks for can be had.

    Raises:
        ValueError: it cannot; the message names the key, the value, what is allowed and the fix.
    """
    from evaluation.contamination import check_tested_texts
    from evaluation.measure import Evaluator
    from pruning.allocation import Allocator
    from pruning.cache import Cache
    from pruning.checkpoint import require_space_for
    from pruning.families import find_layout
    from pruning.grouping import find_units
    from pruning.model import choose_device
    from pruning.rounds import Chooser
    from pruning.run_texts import draw_texts

    ratios = config.schedule.ratios(config.pruning.ratio)
    parts = config.recovery.parts(len(ratios))
    cache, device = Cache(Path(config.cache_dir)), choose_device(config.device)
    model, tokenizer = config.model.load(cache, device)
    layout = find_layout(model)
    allocator = Allocator(config.pruning, model, layout, cache)
    touched = allocator.touched(find_units(model, layout))
    config.importance.check(touched)
    config.compensation.check(touched)
    if config.save_model:
        require_space_for(model, run.path)
    data, tested = config.data, config.evaluation.texts
    documents = data.documents(model, tokenizer, cache, config.seed)
    nearness = check_tested_texts(documents, data.allow_tested, tested, config.stability.text, cache)
    blocks = {
        "calibration": (data.calibration_samples, data.calibration_length),
        "compensation": config.compensation.blocks_needed(),
        "recovery": config.recovery.blocks_needed(),
    }
    texts = draw_texts(documents, blocks, tokenizer, config.seed)
    return Bench(
        config=config,
        run=run,
        tracker=tracker,
        cache=cache,
        device=device,
        model=model,
        tokenizer=tokenizer,
        layout=layout,
        chooser=Chooser(
            config.importance, config.compensation, allocator, cache, texts.calibration, texts.compensation
        ),
        ratios=ratios,
        parts=parts,
        texts=texts,
        nearness=nearness,
        evaluator=Evaluator(config.evaluation, config.stability, tokenizer, cache),
    )


def describe_result(bench: Bench, who: RunIdentity, metrics: dict[str, float], events: list[EventReport]) -> RunResult:
    """Put together what is known of a finished run."""
    from pruning.layout import layer_widths

    return RunResult(
        key=who.key,
        name=who.name,
        study=who.study,
        config=who.config,
        choices=who.choices,
        metrics=metrics,
        events=[event.metrics(bench.config.stability) for event in events],
        widths=[vars(layer) for layer in layer_widths(bench.model, bench.layout)],
        environment=describe_environment(bench.device),
        timings=bench.run.timings,
    )


def job(cfg: DictConfig, run: RunFolder) -> RunResult:
    """Run one experiment in its folder, tracked and within its time."""
    who = identity.describe(cfg, run.path)
    config = schema.checked(cfg, who)
    with config.tracking.start(who) as tracker:
        with time_limit(config.time_limit, run.path / "run.log"):
            with run.stage("load"):
                bench = prepare(config, run, tracker)
            metrics, events = experiment(bench)
            result = describe_result(bench, who, metrics, events)
            if config.save_model:
                from pruning.checkpoint import save_checkpoint

                with run.stage("save"):
                    save_checkpoint(bench.model, bench.tokenizer, run.model, model_card(result))
        run.done(result)
        publish(result, run.path, tracker)
    return result


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | tuple[float, ...] | None:
    """Run one job, or skip it when its result is there. Returns its objectives, for a search."""
    run = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    with run.locked():
        result = None if cfg.force else run.result()
        if result is not None:
            log.info("done before, nothing to do (force=true runs it again)")
            if under_agent():  # which waits for the figures of its own W&B run
                republish(result, run.path, schema.typed_value(cfg, "tracking"))
        else:
            try:
                one_at_a_time = HydraConfig.get().runtime.choices["hydra/launcher"] == "basic"
                with run_display(run.path, one_at_a_time), run.attempt():
                    result = job(cfg, run)
            except ValueError as error:
                if HydraConfig.get().mode is RunMode.MULTIRUN:
                    raise  # Hydra goes on with the other jobs and reports it in the end
                sys.exit(f"{error}\nrun folder: {run.path}")
    print_report(result)
    log.info("run folder: %s", run.path)
    return objectives(result.metrics, cfg.objectives)


if __name__ == "__main__":
    command.run(main)
