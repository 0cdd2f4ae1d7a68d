"""Events in the walk of one run: removals that are undone, and events sized by their instability."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from conf import schema
from evaluation.perplexity import score_text
from evaluation.run_folder import RunFolder
from evaluation.tracking import Tracker
from experiment.bench import Bench, prepare
from experiment.walk import prune_and_recover
from pruning.compensation.apply import pruned_for_now
from pruning.grouping import find_units
from pruning.masking import masked
from pruning.model import count_parameters, fingerprint
from pruning.removal import Cut, Event
from pruning.units import UnitGroup, removed_units

OPTIONS = [
    "model=tiny_llama",
    "model.layers=6",
    "pruning.protect_first=1",
    "pruning.protect_last=1",
    "pruning.ratio=0.1",
    "data.calibration_samples=4",
    "compensation=none",
    "recovery=none",
    "evaluation=none",
    "stability.blocks=8",
    "stability.length=32",
    "stability.resamples=20",
]
TRAINED = [
    "recovery=lora",
    "recovery.steps=4",
    "recovery.length=24",
    "recovery.batch_size=2",
    "recovery.micro_batch_size=2",
    "recovery.warmup_steps=1",
    "recovery.learning_rate=1e-2",
]
ITERATIVE = [*TRAINED, "recovery.when=each", "schedule=linear", "schedule.events=2"]
ZEROING = ["removal=zeroing", "removal.steps=2"]


class Curves(Tracker):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log(self, metrics: dict[str, float]) -> None:
        self.rows.append(metrics)


def bench(folder: Path, *options: str) -> Bench:
    schema.register()
    with initialize_config_dir(config_dir=str(Path(schema.__file__).parent), version_base="1.3"):
        config = schema.typed(compose("config", overrides=[*OPTIONS, f"runs_dir={folder}", *options]))
    place = folder / "run"
    place.mkdir(parents=True, exist_ok=True)
    return prepare(config, RunFolder(place), Curves())


def groups_of(given: Bench) -> dict[str, UnitGroup]:
    return given.chooser.allocator.touched(find_units(given.model, given.layout))


def units_taken(given: Bench, ratio: float) -> dict[str, list[int]]:
    """Return which units of the given bench's dense model an event to this ratio takes."""
    groups = groups_of(given)
    _, plan, _ = given.chooser.for_trial().choose(given.model, groups, 0.0, ratio)
    return removed_units(plan, groups)


def test_zeroed_units_are_back_with_the_weights_they_had(tmp_path: Path) -> None:
    """The base is frozen: without the adapters' part the weights are the dense model's, and the ratio reached is 0."""
    given = bench(tmp_path, *ITERATIVE, *ZEROING)
    twin = bench(tmp_path, *ITERATIVE)
    dense = twin.model
    metrics, reports, events = prune_and_recover(given)
    assert count_parameters(given.model) == count_parameters(dense)
    assert metrics["pruned/ratio_reached"] == metrics["pruned/ratio_of_total"] == 0
    assert metrics["pruned/ratio_targeted"] == pytest.approx(0.1, abs=0.01)
    assert [event.ratio_reached for event in events] == [0, 0]
    assert [event.ratio_asked for event in events] == pytest.approx([0.05, 0.1])
    assert [report.steps for report in reports] == [range(0, 2), range(2, 4)]
    removed = units_taken(twin, 0.05)
    with masked(dense, find_units(dense, twin.layout), removed):
        assert events[0].post.fingerprint == fingerprint(dense)
    assert events[0].pre.fingerprint == fingerprint(dense)
    for name, units in removed.items():
        if name.endswith("mlp"):
            rows = [m.get_parameter(f"model.{name}.gate_proj.weight")[units] for m in (given.model, dense)]
            torch.testing.assert_close(*rows, rtol=0, atol=0.02)  # what little the adapters add
    untouched = given.model.get_parameter("model.embed_tokens.weight")
    assert torch.equal(untouched, dense.get_parameter("model.embed_tokens.weight"))


def test_noise_is_part_of_what_a_training_is_kept_under(tmp_path: Path) -> None:
    """One cache for all: each noise ends elsewhere, and again where it ended before."""
    ends = []
    for removal in (ZEROING, ["removal=gaussian", "removal.steps=2", "removal.walk=true"], ZEROING):
        given = bench(tmp_path, *TRAINED, *removal)
        prune_and_recover(given)
        ends.append(fingerprint(given.model))
    assert ends[0] == ends[2] != ends[1]


def test_units_re_enter_at_zero_and_grow_where_their_weights_are_trained(tmp_path: Path) -> None:
    options = [*(option.replace("lora", "full") for option in TRAINED), "removal=zeroing", "removal.reentry=zero"]
    removed = units_taken(bench(tmp_path), 0.1)
    name, units = next((name, units) for name, units in removed.items() if name.endswith("mlp"))
    given = bench(tmp_path, *options, "removal.steps=2")
    dense = given.model.get_parameter(f"model.{name}.down_proj.weight")[:, units].detach().clone()
    prune_and_recover(given)
    grown = given.model.get_parameter(f"model.{name}.down_proj.weight")[:, units].detach()
    assert 0 < grown.abs().max() <= 1e-2 * 2  # two steps of AdamW at a rate of 1e-2
    assert dense.abs().max() > 0.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["compensation=bias", *ITERATIVE, *ZEROING], r"compensation: .* use compensation=none"),
        ([*ITERATIVE, *ZEROING, "removal.reentry=zero"], r"removal\.reentry=zero: .*use recovery=full"),
        ([*ITERATIVE, *ZEROING, "stability.random_control=true"], r"stability\.random_control=true: .*use removal=cut"),
        ([*ITERATIVE, *ZEROING, "algorithmic_stability=twins"], r"algorithmic_stability=twins: .*use removal=cut"),
        (["schedule=stability_target", "schedule.smallest_step=0.2"], r"schedule\.smallest_step=0\.2"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench(tmp_path, *options)


@torch.no_grad()
def written_by(model: Any) -> torch.Tensor:
    """Return text (16, 32) that the model predicts without a mistake, so that there is an accuracy to lose."""
    ids = torch.randint(2, 258, (16, 1), generator=torch.Generator().manual_seed(0))
    for _ in range(31):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids


def accuracy(given: Bench) -> float:
    return score_text(given.model, given.evaluator.probe_blocks).token_accuracy


@pytest.mark.parametrize(("goal", "tolerance", "compensation"), [(0.3, 0.1, "none"), (0.1, 0.01, "bias")])
def test_every_event_is_as_unstable_as_asked_or_as_steps_allow(
    tmp_path: Path, goal: float, tolerance: float, compensation: str
) -> None:
    """Measured once more, uncached, on a second model that the same events are cut from."""
    step = 0.02
    sized = [f"schedule.instability={goal}", f"schedule.tolerance={tolerance}", f"schedule.smallest_step={step}"]
    options = ["schedule=stability_target", *sized, f"compensation={compensation}", "pruning.ratio=0.2"]
    given, again = bench(tmp_path, *options), bench(tmp_path, *options)
    given.evaluator.probe_blocks = again.evaluator.probe_blocks = written_by(given.model)
    assert accuracy(given) == 1
    metrics, _, events = prune_and_recover(given)
    assert metrics["pruned/ratio_reached"] == pytest.approx(0.2, abs=0.01)
    assert events[-1].ratio_asked == 0.2
    before = 0.0
    for event in events:
        groups = groups_of(again)

        def instability(ratio: float) -> float:
            whole = accuracy(again)
            _, plan, corrections = again.chooser.for_trial().choose(again.model, groups, before, ratio)  # noqa: B023
            with pruned_for_now(again.model, groups, plan, corrections):  # noqa: B023
                return (whole - accuracy(again)) / whole

        found = instability(event.ratio_asked)
        assert event.metrics(given.config.stability)["event/instability/tok_acc"] == pytest.approx(found, abs=0.01)
        if abs(found - goal) > tolerance + 0.01 and event is not events[-1]:
            if found < goal:
                assert instability(min(0.2, event.ratio_asked + 2 * step)) > found
            else:
                assert event.ratio_asked - before < 2 * step
        _, plan, corrections = again.chooser.choose(again.model, groups, before, event.ratio_asked)
        with Cut().carried_out(again.model, Event(again.layout, groups, plan, plan, corrections, 0)):
            before = event.ratio_asked
    trials = [row for row in given.tracker.rows if "trial/ratio" in row]
    assert len(trials) >= len(events)
