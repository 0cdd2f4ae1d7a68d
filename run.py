"""Secateur: prune a language model, recover it, measure it. `python run.py --help`.

Hydra composes the configuration; experiment/walk.py is the walk of one run; `job` keeps its folder: a finished run is
skipped, a failed one leaves its error, the result is written last.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

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
from evaluation.inputs import changed_inputs, input_digests
from evaluation.progress import run_display
from evaluation.publish import publish, republish
from evaluation.report import model_card, print_report
from evaluation.result import RunResult, describe_environment
from evaluation.run_folder import RunFolder
from evaluation.tracking import RunIdentity, under_agent
from sweeps import command
from sweeps.objectives import objectives
from sweeps.time_limit import time_limit

if TYPE_CHECKING:
    from experiment.bench import Bench

log = logging.getLogger("secateur")


def describe_result(
    bench: Bench,
    who: RunIdentity,
    inputs: dict[str, str],
    metrics: dict[str, float],
    trajectory: list[dict[str, float]],
) -> RunResult:
    """Put together what is known of a finished run."""
    from pruning.layout import layer_widths

    return RunResult(
        key=who.key,
        name=who.name,
        study=who.study,
        config=who.config,
        choices=who.choices,
        metrics=metrics,
        events=bench.run.events,
        widths=[vars(layer) for layer in layer_widths(bench.model, bench.layout)],
        environment=describe_environment(bench.device),
        timings=bench.run.timings,
        trajectory=trajectory,
        inputs=inputs,
    )


def job(cfg: DictConfig, run: RunFolder) -> RunResult:
    """Run one experiment in its folder, tracked and within its time."""
    from experiment.bench import prepare
    from experiment.walk import experiment

    who = identity.describe(cfg, run.path)
    config = schema.checked(cfg, who)
    with config.tracking.start(who) as tracker:
        with time_limit(config.time_limit, run.path / "run.log"):
            with run.stage("load"):
                inputs = input_digests(who.config)
                bench = prepare(config, run, tracker)
            result = describe_result(bench, who, inputs, *experiment(bench))
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
            for key in changed_inputs(identity.resolved(cfg), result.inputs):
                log.warning("%s: what it names has changed since this run was done; force=true runs it again", key)
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
