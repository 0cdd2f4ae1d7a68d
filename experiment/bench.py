"""The bench of one run: everything it works with, made and checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from conf import schema
from evaluation.algorithmic_stability.pool import draw_pool
from evaluation.algorithmic_stability.twins import Twins
from evaluation.contamination import check_tested_texts
from evaluation.flatness.config import FlatnessMeter
from evaluation.generalization import gaps, out_of_domain_source, watched_texts
from evaluation.measure import Evaluator
from evaluation.run_folder import RunFolder
from evaluation.tracking import Tracker
from pruning.allocation import Allocator
from pruning.cache import Cache
from pruning.checkpoint import require_space_for
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.layout import DecoderLayout
from pruning.model import choose_device
from pruning.noise import Noise
from pruning.rounds import Chooser
from pruning.run_texts import RunTexts, draw_texts
from pruning.self_generated import with_self_generated
from recovery.lora import Lora
from recovery.targets import cut_maps
from recovery.task import RecoveryReport, RecoveryTask


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
    texts: RunTexts

    twin_pool: torch.Tensor
    """(P, T), what twin recoveries read; empty without."""

    nearness: dict[str, float]
    """Metrics that say how near each tested text is to `texts`."""

    evaluator: Evaluator
    flatness: FlatnessMeter

    watched: dict[str, torch.Tensor]
    """Texts that tell how the recovery goes, (N, T) each."""

    def load_dense(self) -> Any:
        """Return another copy of the dense model."""
        return self.config.model.load(self.cache, self.device)[0]

    def recover(self, model: Any, steps: range, *, silent: bool = False, noise: Noise | None = None) -> RecoveryReport:
        """Train `model` for some of the recovery's steps, in place."""
        touched = self.chooser.allocator.touched(find_units(model, self.layout))
        validation = {"validation": self.texts.validation} if len(self.texts.validation) else {}
        log = (lambda _: None) if silent else self.tracker.log
        task = RecoveryTask(
            self.texts.recovery,
            steps,
            self.config.seed,
            self.load_dense,
            watched=(self.watched if self.config.recovery.watch_every else {}) | validation,
            cut_maps=cut_maps(model, touched),
            noise=noise,
        )
        report = self.config.recovery.recover(model, task, self.cache, log)
        if report.diverged:
            self.run.note(f"recovery: a training diverged; its state after step {report.taken_step} was taken")
        for point in report.trajectory:
            point |= gaps(point)
            log({f"recovery/{name}": value for name, value in point.items()})
        return report


def prepare(config: schema.ExperimentConfig, run: RunFolder, tracker: Tracker) -> Bench:
    """Load the model and the texts, and check that everything the configuration asks for can be had.

    Raises:
        ValueError: it cannot; the message names the key, the value, what is allowed and the fix.
    """
    check_controls(config)
    if config.pruning.ratio:
        config.recovery.check_events(config.schedule.num_events)
    config.recovery.check_removal(config.removal, config.schedule.num_events)
    twin_blocks = config.algorithmic_stability.blocks_needed(config.recovery.blocks_needed())
    cache, device = Cache(Path(config.cache_dir)), choose_device(config.device)
    model, tokenizer = config.model.load(cache, device)
    layout = find_layout(model)
    allocator = Allocator(config.pruning, model, layout, cache)
    touched = allocator.touched(find_units(model, layout))
    config.importance.check(touched)
    config.compensation.check(touched)
    config.removal.check(touched, config.schedule, config.compensation)
    if config.pruning.ratio:
        config.schedule.check(config.pruning.ratio, allocator.finest)
    config.recovery.check_model(model)
    if config.save_model:
        require_space_for(model, run.path)
    data, tested = config.data, config.evaluation.texts
    documents = data.documents(model, tokenizer, cache, config.seed)
    own = config.recovery.documents(model, tokenizer, cache, config.seed)
    stability = config.stability
    nearness = check_tested_texts(
        [*documents, *own], data.allow_tested, tested, stability.text, cache, out_of_domain=stability.out_of_domain
    )
    other = out_of_domain_source(stability.out_of_domain, tested, nearness)
    blocks = blocks_needed(config)
    tokens = max(count * length for count, length in (blocks["calibration"], blocks["compensation"]))
    calibrating = with_self_generated(
        documents, data.self_generated_share, tokens, model, tokenizer, cache, config.seed
    )
    texts = draw_texts(calibrating, blocks, tokenizer, config.seed, own or documents)
    evaluator = Evaluator(config.evaluation, stability, tokenizer, cache)
    factors = isinstance(config.recovery, Lora) and not config.recovery.use_dora
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
        texts=texts,
        twin_pool=draw_pool(own or documents, twin_blocks, tokenizer, config.seed),
        nearness=nearness,
        evaluator=evaluator,
        flatness=config.flatness.meter(model, layout, tokenizer, cache, factors),
        watched=watched_texts(texts, evaluator, other),
    )


def blocks_needed(config: schema.ExperimentConfig) -> dict[str, tuple[int, int]]:
    """Return the number and length (N, T) of the blocks that each use of the run's text asks for."""
    return {
        "calibration": (config.data.calibration_samples, config.data.calibration_length),
        "compensation": config.compensation.blocks_needed(),
        "recovery": config.recovery.blocks_needed(),
        "validation": config.recovery.validation_needed(),
    }


def check_controls(config: schema.ExperimentConfig) -> None:
    """Raise a ValueError for what a run would be compared with although it is trained otherwise."""
    if not config.removal.is_temporary:
        return
    asked = {
        "stability.random_control=true": config.stability.random_control,
        "algorithmic_stability=twins": isinstance(config.algorithmic_stability, Twins),
    }
    for option, chosen in asked.items():
        if chosen:
            raise ValueError(
                f"{option}: trains its models without the noise that this removal acts by; leave it out, or use removal=cut"
            )
