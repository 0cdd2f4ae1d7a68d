"""Secateur: prune a language model, recover it, measure it. `python run.py --help`.

Hydra composes the configuration; `experiment` is the walk of one run; `job` keeps its folder: a finished run is skipped, a
failed one leaves its error, the result is written last.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Threads spin only shortly while they wait: as fast as the default alone, and twice as fast on a machine that is shared.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries, about each other
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from conf import hints, identity, schema
from evaluation.report import model_card, print_report
from evaluation.result import RunResult, describe_environment
from evaluation.run_folder import RunFolder
from evaluation.tracking import RunIdentity, Tracker, publish

if TYPE_CHECKING:
    from evaluation.measure import Evaluator
    from evaluation.stability import EventReport
    from pruning.allocation import Allocator
    from pruning.blocks import RunTexts
    from pruning.cache import Cache
    from pruning.layout import DecoderLayout
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
    allocator: Allocator
    ratios: tuple[float, ...]
    parts: int
    """Number of trainings that the recovery is divided into."""

    texts: RunTexts
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
        bench.run.keep_outcomes("dense", dense.zeroshot())

    pruned_metrics, report, events = prune_and_recover(bench)
    metrics |= pruned_metrics | report.metrics()
    if report.adapter:
        bench.run.keep_adapter(report.adapter)

    with bench.run.stage("recovered"):
        recovered = bench.evaluator.snapshot(bench.model)
        metrics |= staged("recovered", recovered.measure())
        bench.run.keep_outcomes("recovered", recovered.zeroshot())
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

    metrics |= stability_summary(events, bench.config.stability)
    return metrics | generalization_summary(recovered.probe(), control_probe, train, heldout), events


def prune_and_recover(bench: Bench) -> tuple[dict[str, float], RecoveryReport, list[EventReport]]:
    """Carry out every event of the schedule on the bench's model, and the recovery where it is due.

    Nothing happens to the model between the probes directly before and directly after a cut.
    """
    from evaluation.measure import staged
    from evaluation.stability import EventReport
    from pruning.grouping import find_units
    from pruning.importance.scoring import score_units
    from pruning.surgery import cut
    from recovery.base import When

    config, run, model, evaluator = bench.config, bench.run, bench.model, bench.evaluator
    metrics: dict[str, float] = {}
    events: list[EventReport] = []
    for index, ratio in enumerate(bench.ratios):
        name, is_last = f"event {index + 1} of {len(bench.ratios)}", index == len(bench.ratios) - 1
        with run.stage(f"{name}: score"):
            groups = bench.allocator.touched(find_units(model, bench.layout))
            scores = score_units(config.importance, model, groups, bench.texts.calibration, bench.cache)
            plan = bench.allocator.plan(model, groups, scores.values, ratio)
        with run.stage(f"{name}: cut"):
            pre = evaluator.snapshot(model).probe()
            cut(model, bench.layout, groups, plan)
            pruned = evaluator.snapshot(model)
            post = pruned.probe()
        if is_last:
            with run.stage("pruned"):
                sure = {f"scores/{name}": value for name, value in scores.metrics().items()}
                metrics = staged("pruned", pruned.measure() | bench.allocator.ratios(model, plan) | sure)
                run.keep_outcomes("pruned", pruned.zeroshot())
        if is_last or config.recovery.when is When.each:
            with run.stage(f"{name}: recover"):
                report = bench.recover(model, index if config.recovery.when is When.each else 0)
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
    from evaluation.measure import Evaluator
    from pruning.allocation import Allocator
    from pruning.blocks import draw_texts
    from pruning.cache import Cache
    from pruning.checkpoint import require_space_for
    from pruning.families import find_layout
    from pruning.grouping import find_units
    from pruning.model import choose_device

    ratios = config.schedule.ratios(config.pruning.ratio)
    parts = config.recovery.parts(len(ratios))
    cache, device = Cache(Path(config.cache_dir)), choose_device(config.device)
    model, tokenizer = config.model.load(cache, device)
    layout = find_layout(model)
    allocator = Allocator(config.pruning, model, layout)
    config.importance.check(allocator.touched(find_units(model, layout)))
    if config.save_model:
        require_space_for(model, run.path)
    return Bench(
        config=config,
        run=run,
        tracker=tracker,
        cache=cache,
        device=device,
        model=model,
        tokenizer=tokenizer,
        layout=layout,
        allocator=allocator,
        ratios=ratios,
        parts=parts,
        evaluator=Evaluator(config.evaluation, config.stability, tokenizer, cache),
        texts=draw_texts(config.data, config.recovery.blocks_needed(), model, tokenizer, cache, config.seed),
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
    """Run one experiment in its folder, tracked. A failure is logged there and raised."""
    run.begin()
    try:
        config = schema.typed(cfg)
        who = identity.describe(cfg, run.path)
        with config.tracking.start(who) as tracker:
            with run.stage("load"):
                bench = prepare(config, run, tracker)
            metrics, events = experiment(bench)
            result = describe_result(bench, who, metrics, events)
            if config.save_model:
                from pruning.checkpoint import save_checkpoint

                with run.stage("save"):
                    save_checkpoint(bench.model, bench.tokenizer, run.model, model_card(result))
            run.done(result)
            publish(result, run, tracker)
        return result
    except BaseException as error:
        run.failed(error)
        raise
    finally:
        gc.collect()  # the next job of a sweep runs in the same process


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Run one job, or skip it when its result is there. Returns the recovered zero-shot mean, for sweepers."""
    run = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    with run.locked():
        result = None if cfg.force else run.result()
        if result is not None:
            log.info("done before, nothing to do (force=true runs it again)")
        else:
            try:
                result = job(cfg, run)
            except ValueError as error:
                if HydraConfig.get().mode is RunMode.MULTIRUN:
                    raise  # Hydra goes on with the other jobs and reports it in the end
                sys.exit(f"{error}\nrun folder: {run.path}")
    print_report(result)
    log.info("run folder: %s", run.path)
    return result.metrics.get("recovered/zeroshot/mean")


if __name__ == "__main__":
    try:
        hints.check_overrides(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"{error}\n`python run.py --help` lists every option.")
    schema.register()
    identity.register()
    try:
        main()
    except OmegaConfBaseException as error:  # a value that has no default was not given
        sys.exit(f"{error}\n`python run.py --help` lists every option.")
