"""The walk of one run in this process: what happens to the weights between the probes, and beside the run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from conf import schema
from evaluation.generalization import gaps
from evaluation.random_control import prune_at_random
from evaluation.run_folder import RunFolder
from evaluation.tracking import Tracker
from experiment.bench import Bench, prepare
from experiment.walk import experiment, prune_and_recover
from pruning.compensation.apply import compensate
from pruning.grouping import find_units
from pruning.model import count_parameters, fingerprint
from pruning.surgery import cut

OPTIONS = [
    "model=tiny_llama",
    "model.layers=4",
    "pruning.ratio=0.1",
    "data.calibration_samples=4",
    "pruning.protect_first=1",
    "pruning.protect_last=1",
    "compensation=none",
    "recovery=none",
    "evaluation=none",
    "stability.blocks=4",
    "stability.length=24",
    "stability.resamples=20",
]


class Curves(Tracker):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log(self, metrics: dict[str, float]) -> None:
        self.rows.append(metrics)


def bench(folder: Path, *options: str) -> Bench:
    """Prepare a run of the options above, and of `options` in place of those of the same key."""
    given = {option.partition("=")[0]: option for option in (*OPTIONS, f"runs_dir={folder}", *options)}
    schema.register()
    with initialize_config_dir(config_dir=str(Path(schema.__file__).parent), version_base="1.3"):
        config = schema.typed(compose("config", overrides=list(given.values())))
    place = folder / "run"
    place.mkdir(parents=True, exist_ok=True)
    return prepare(config, RunFolder(place), Curves())


def choose(given: Bench, model: Any, before: float, ratio: float) -> tuple[Any, ...]:
    groups = given.chooser.allocator.touched(find_units(model, given.layout))
    _, plan, corrections = given.chooser.choose(model, groups, before, ratio)
    return groups, plan, corrections


COMPENSATIONS = [["compensation=none"], ["compensation=least_squares", "compensation.samples=4"]]


@pytest.mark.parametrize("compensation", COMPENSATIONS, ids=lambda options: options[0])
def test_between_the_probes_of_an_event_there_is_the_cut_and_its_compensation_only(
    tmp_path: Path, compensation: list[str]
) -> None:
    options = ["schedule=linear", "schedule.events=2", *compensation]
    given = bench(tmp_path, *options)
    model = copy.deepcopy(given.model)
    *_, events = prune_and_recover(given)
    again = bench(tmp_path, *options)
    before = 0.0
    for event in events:
        assert event.pre.fingerprint == fingerprint(model)
        groups, plan, corrections = choose(again, model, before, event.ratio_asked)
        compensate(model, corrections)
        cut(model, again.layout, groups, plan)
        assert event.post.fingerprint == fingerprint(model)
        assert event.rec.fingerprint == event.post.fingerprint  # no recovery
        before = event.ratio_asked
    assert len({event.pre.fingerprint for event in events} | {events[-1].post.fingerprint}) == 3


def test_without_compensation_what_stays_is_bit_identical(tmp_path: Path) -> None:
    given = bench(tmp_path)
    dense = copy.deepcopy(given.model)
    _, plan, _ = choose(given, dense, 0.0, 0.1)
    prune_and_recover(given)
    head, heads_of_group = 16, 2
    seen = 0
    for index, (old, new) in enumerate(zip(dense.model.layers, given.model.model.layers, strict=True)):
        kept = {name.split(".")[-1]: units for name, units in plan.kept.items() if f"layers.{index}." in name}
        channels = list(kept.get("mlp", range(old.mlp.gate_proj.out_features)))
        assert torch.equal(new.mlp.gate_proj.weight, old.mlp.gate_proj.weight[channels])
        assert torch.equal(new.mlp.up_proj.weight, old.mlp.up_proj.weight[channels])
        assert torch.equal(new.mlp.down_proj.weight, old.mlp.down_proj.weight[:, channels])
        groups = kept.get("attention", range(2))
        rows = [unit * head + place for unit in groups for place in range(head)]
        queries = [unit * head * heads_of_group + place for unit in groups for place in range(head * heads_of_group)]
        assert torch.equal(new.self_attn.k_proj.weight, old.self_attn.k_proj.weight[rows])
        assert torch.equal(new.self_attn.v_proj.weight, old.self_attn.v_proj.weight[rows])
        assert torch.equal(new.self_attn.q_proj.weight, old.self_attn.q_proj.weight[queries])
        assert torch.equal(new.self_attn.o_proj.weight, old.self_attn.o_proj.weight[:, queries])
        seen += len(channels) < old.mlp.gate_proj.out_features
    assert seen
    assert torch.equal(given.model.model.embed_tokens.weight, dense.model.embed_tokens.weight)


def test_the_divergence_of_an_event_is_that_of_the_model_after_the_cut_from_the_one_before(tmp_path: Path) -> None:
    given = bench(tmp_path, "stability.kl=true")
    dense = copy.deepcopy(given.model)
    *_, events = prune_and_recover(given)
    blocks = given.evaluator.probe_blocks
    with torch.no_grad():
        p, q = (torch.log_softmax(model(blocks).logits[:, :-1].double(), dim=-1) for model in (dense, given.model))
    expected = (p.exp() * (p - q)).sum(-1).mean(1)
    assert events[0].divergence == pytest.approx(expected.tolist(), rel=1e-3)
    row = given.run.events[0]
    assert row["event/instability/kl"] == pytest.approx(float(expected.mean()), rel=1e-3)
    assert row["event/instability/kl"] > 0


def test_the_random_control_is_what_a_one_shot_run_with_random_scores_cuts(tmp_path: Path) -> None:
    given = bench(tmp_path, "schedule=linear", "schedule.events=2", "importance=l2", "seed=3")
    control, _ = given.config.model.load(given.cache, given.device)
    plan = prune_at_random(control, given.layout, given.chooser, seed=3)
    drawn = bench(tmp_path, "schedule=one_shot", "importance=random", "seed=3")
    *_, (event,) = prune_and_recover(drawn)
    assert fingerprint(control) == event.post.fingerprint
    assert plan.ratio_reached == event.ratio_reached


WATCHED = [
    "recovery=lora",
    "recovery.steps=4",
    "recovery.length=24",
    "recovery.batch_size=2",
    "recovery.micro_batch_size=2",
]


def test_the_watched_texts_are_logged_over_the_steps_and_kept_with_their_gaps(tmp_path: Path) -> None:
    texts = ["+evaluation.texts.wikipedia=wikipedia", "evaluation.text_tokens=256", "stability.random_control=true"]
    given = bench(tmp_path, *WATCHED, *texts, "recovery.watch_every=2")
    assert given.watched["heldout"].shape == given.watched["out_of_domain"].shape
    metrics, trajectory = experiment(given)
    assert [point["step"] for point in trajectory] == [0, 2, 4]
    assert isinstance(given.tracker, Curves)
    rows = [row for row in given.tracker.rows if "recovery/heldout/loss" in row]
    assert [row["recovery/step"] for row in rows] == [0, 2, 4]
    for point in trajectory:
        assert gaps(point).items() <= point.items()
        assert point["gap/loss"] == pytest.approx(point["heldout/loss"] - point["train/loss"])
    final = {
        name: metrics[f"generalization/{name}"] for name in ("train/loss", "heldout/loss", "gap_out_of_domain/loss")
    }
    assert final == pytest.approx({name: trajectory[-1][name] for name in final}, abs=1e-4)
    assert metrics["generalization/final/loss"] == pytest.approx(trajectory[-1]["probe/loss"], abs=1e-4)
    expected = metrics["random_control/probe/loss"] - metrics["recovered/probe/loss"]
    assert metrics["generalization/gain_match/loss"] == pytest.approx(expected)


def test_without_the_control_everything_but_the_gain_over_it_is_there(tmp_path: Path) -> None:
    with_control, _ = experiment(bench(tmp_path / "with", *WATCHED, "recovery.steps=1"))
    without, _ = experiment(bench(tmp_path / "without", *WATCHED, "recovery.steps=1", "stability.control=false"))
    left_out = {name for name in with_control if name not in without}
    assert left_out == {name for name in with_control if name.startswith(("control/", "generalization/gain/"))}
    assert "generalization/gain/loss" in left_out


def test_texts_are_watched_only_where_the_recovery_says_how_often(tmp_path: Path) -> None:
    metrics, trajectory = experiment(bench(tmp_path, *WATCHED, "recovery.steps=1"))
    assert trajectory == []
    assert "generalization/gap/loss" in metrics
    assert "generalization/gap_out_of_domain/loss" not in metrics  # no text of another corpus is tested


def test_a_text_of_the_datas_own_corpus_is_refused_as_out_of_domain(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stability\.out_of_domain=passages: of the same corpus"):
        bench(tmp_path, "stability.out_of_domain=passages")


def test_the_probes_around_a_cut_are_scored_in_batches_of_one_size_where_memory_is_short(tmp_path: Path) -> None:
    """The dense model's scores were taken where there was more of it, and are in the cache."""
    experiment(bench(tmp_path, "pruning.ratio=0"))
    given = bench(tmp_path)
    shapes, run = [], given.model.forward

    def forward(*args: Any, **inputs: Any) -> Any:
        if torch.is_inference_mode_enabled() and "input_ids" in inputs and inputs["input_ids"].shape[1] == 24:
            if len(inputs["input_ids"]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            shapes.append((count_parameters(given.model), len(inputs["input_ids"])))
        return run(*args, **inputs)

    given.model.forward = forward
    dense = count_parameters(given.model)
    experiment(given)
    before, after = ([size for count, size in shapes if (count == dense) is whole] for whole in (True, False))
    assert before == [2, 2, 2]  # the batch that is tried, then the 4 blocks of the probe
    assert after == [2, 2]
