"""The paper's experiment at small scale: a language model trained from scratch, and pruned while it over-fits a small text.

Bartoldson et al., NeurIPS 2020, prune networks that fit their training set: units of the smallest scores, drawn at random, or
of the largest scores, to one final size. Which of them generalises better is printed with its interval, and not asserted: it
is a finding, not a property of the code.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from conf import schema
from evaluation.analysis.association import associate_all
from evaluation.analysis.estimate import Settings
from evaluation.analysis.observations import RATIO, Study
from evaluation.analysis.study_analysis import FINAL, GAIN, GAP, INSTABILITY
from evaluation.analysis.tables import WIDTH, new_table, print_associations
from evaluation.dashboard.runs import RunRecord
from evaluation.run_folder import RunFolder
from evaluation.tracking import Tracker
from experiment.bench import Bench, prepare
from experiment.walk import experiment
from pruning.bundled import half_of_passages
from recovery.full import FullFineTuning

pytestmark = pytest.mark.slow

SEEDS = range(5)
DIRECTIONS = ("smallest", "random", "largest")
PASSAGES = 16
"""Documents of the text, spread over the half of the passages that is trained on; 4 of them are held out for the gap."""

FIRST_STEPS = 300
"""From random weights to the first event, unpruned."""

OPTIONS = {
    "data": "local",
    "data.heldout_fraction": "0.25",
    "data.calibration_samples": "16",
    "data.calibration_length": "64",
    "importance": "taylor",
    "importance.halves": "false",
    "pruning": "mlp_only",
    "pruning.ratio_of": "units",
    "pruning.ratio": "0.6",
    "pruning.protect_first": "0",
    "pruning.protect_last": "0",
    "compensation": "none",
    "schedule": "linear",
    "schedule.events": "4",
    "recovery": "full",
    "recovery.when": "each",
    "recovery.tail": "0.5",
    "recovery.steps": "300",
    "recovery.length": "64",
    "recovery.batch_size": "8",
    "recovery.micro_batch_size": "8",
    "recovery.learning_rate": "3e-3",
    "recovery.scheduler": "constant",
    "recovery.warmup_steps": "0",
    "recovery.save_every": "100000",
    "evaluation": "none",
    "stability.zeroshot": "false",
    "stability.blocks": "128",
    "stability.length": "64",
    "stability.resamples": "100",
    "save_model": "false",
    "tracking": "none",
}
NETWORK = {
    "model": "tiny_llama",
    "model.layers": "2",
    "model.hidden_size": "64",
    "model.intermediate_size": "256",
}
SHOWN = {
    INSTABILITY: None,
    FINAL: "control/probe/tok_acc",
    "generalization/final/loss": "control/probe/loss",
    GAIN: None,
    "generalization/gain/loss": None,
    "generalization/train/loss": None,
    GAP: None,
}
"""Metric -> what it is called of the control, where that is measured."""


class FromScratch(FullFineTuning):
    """Trains every weight: embeddings and norms too."""

    def trained_maps(self, model: Any, cut_maps: Collection[str] | None) -> list[str]:
        return [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]


def bench(place: Path, options: dict[str, str]) -> Bench:
    """Prepare a run of these options in `place`; what it keeps in the cache is shared with the other runs beside it."""
    place.mkdir(parents=True)
    schema.register()
    overrides = [f"{key}={value}" for key, value in (OPTIONS | options | {"runs_dir": str(place.parent)}).items()]
    with initialize_config_dir(config_dir=str(Path(schema.__file__).parent), version_base="1.3"):
        config = schema.typed(compose("config", overrides=overrides))
    config.recovery = FromScratch(**vars(config.recovery))
    return prepare(config, RunFolder(place), Tracker())


def train_network(runs: Path, seed: int) -> Path:
    """Train a network from random weights on the text, save it, and return its folder."""
    options = {"data.path": str(runs / "text.jsonl"), "seed": str(seed), "model.seed": str(seed)}
    given = bench(runs / f"first-{seed}", NETWORK | options | {"recovery.warmup_steps": "10"})
    given.recover(given.model, range(FIRST_STEPS), silent=True)
    folder = runs / f"network-{seed}"
    given.model.save_pretrained(folder)
    given.tokenizer.save_pretrained(folder)
    return folder


def prune_network(runs: Path, network: Path, seed: int, direction: str) -> RunRecord:
    """Train a network on, pruning it meanwhile, and return what the run found."""
    options = {"model": "pretrained", "model.path": str(network), "data.path": str(runs / "text.jsonl")}
    options |= {"seed": str(seed), "pruning.seed": str(seed), "pruning.direction": direction}
    given = bench(runs / f"{direction}-{seed}", options)
    metrics, _ = experiment(given)
    return RunRecord(
        folder=str(given.run.path),
        name=f"{direction}-{seed}",
        study="paper",
        state="done",
        config={"pruning.ratio": given.config.pruning.ratio, "seed": seed},
        metrics={**metrics},
        events=[{**row} for row in given.run.events],
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """All runs; the arms are the directions."""
    runs = tmp_path_factory.mktemp("paper")
    passages = half_of_passages(heldout=False)
    chosen = passages[:: len(passages) // PASSAGES][:PASSAGES]
    (runs / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen))
    networks = {seed: train_network(runs, seed) for seed in SEEDS}
    found = [prune_network(runs, networks[seed], seed, direction) for seed in SEEDS for direction in DIRECTIONS]
    arms = tuple(DIRECTIONS for _ in SEEDS)
    names = tuple(direction for directions in arms for direction in directions)
    return Study("paper", tuple(found), names, names, {})


def of_direction(study: Study, metric: str, direction: str) -> np.ndarray:
    """Return a metric of the runs of one direction, by seed."""
    return study.column(metric)[np.array(study.arms) == direction]


def test_the_networks_over_fit_and_all_reach_one_size(study: Study) -> None:
    assert len(study.runs) == len(SEEDS) * len(DIRECTIONS)
    assert (study.column("generalization/gap/loss") > 0.2).all()
    assert np.allclose(study.column(RATIO), float(OPTIONS["pruning.ratio"]), atol=0.005)
    assert {len(run.events) for run in study.runs} == {int(OPTIONS["schedule.events"])}


def test_the_largest_are_the_least_stable_and_the_smallest_the_most(study: Study) -> None:
    smallest, drawn, largest = (of_direction(study, INSTABILITY, direction) for direction in DIRECTIONS)
    assert smallest.mean() < drawn.mean() < largest.mean()
    assert (smallest < largest).all()


def test_what_instability_did_is_printed_with_its_interval(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [(INSTABILITY, y) for y in (FINAL, GAIN, "generalization/gain/loss", GAP)]
    associations = associate_all(study, pairs, Settings())
    console = Console(width=WIDTH)
    with capsys.disabled():
        console.print(table_of(study))
        print_associations(associations, console)
    for one in associations:
        assert (one.runs, one.arms, one.trouble) == (len(study.runs), len(DIRECTIONS), "")
        low, high = one.estimates["pearson"].intervals["normal"]
        assert -1 <= low < one.estimates["pearson"].value < high <= 1
    assert all(np.isfinite(study.column(metric)).all() for metric in SHOWN)


def table_of(study: Study) -> Table:
    """Return mean and standard deviation over the seeds of every direction, and of the controls."""
    table = new_table("", *DIRECTIONS, "unpruned", title=f"mean ± standard deviation over {len(SEEDS)} seeds")
    for metric, control in SHOWN.items():
        cells = [of_direction(study, metric, direction) for direction in DIRECTIONS]
        cells += [of_direction(study, control, DIRECTIONS[0])] if control else []
        table.add_row(metric, *(f"{cell.mean():.4f} ± {cell.std(ddof=1):.4f}" for cell in cells))
    return table
