"""Folders of runs that look like real ones: figures that follow from ratio, estimator and seed; unfinished runs."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path
from typing import Any

from evaluation.result import RunResult
from pruning.files import write_json

TASKS = {"boolq": 0.6, "piqa": 0.5, "hellaswag": 0.25, "arc_easy": 0.25, "lambada_openai": 0.0}
"""Task -> accuracy of guessing."""

LAYERS = 12
ESTIMATORS = {"taylor": 1.0, "l2": 1.6, "random": 2.4, "wanda": 1.2, "flap": 1.4}
"""Estimator -> how much harm it does."""


def make_study(
    folder: Path, ratios: list[float], estimators: list[str], seeds: list[int], **choices: str
) -> list[RunResult]:
    """Write the finished runs of a study and return their results."""
    results = [make_result(folder.name, *one, **choices) for one in product(ratios, estimators, seeds)]
    for result in results:
        result.write(folder / result.name / "result.json")
        write_status(folder / result.name, "done")
    return results


def make_result(study: str, ratio: float, estimator: str, seed: int, **choices: str) -> RunResult:
    """Return a result with every kind of figure that a run has."""
    noise = random.Random(f"{study} {ratio} {estimator} {seed}")
    harm = ratio * ESTIMATORS[estimator] * noise.uniform(0.9, 1.1)
    stages = {"dense": 0.0, "pruned": harm, "recovered": harm * 0.55, "control": 0.0}
    metrics = {
        f"{stage}/{name}": value for stage, h in stages.items() for name, value in _stage(h, ratio, noise).items()
    }
    metrics = {name: value for name, value in metrics.items() if not name.startswith("control/ppl")}
    events = _events(harm, ratio, 3 if choices.get("schedule") == "cubic" else 1)
    key = f"{noise.getrandbits(32):08x}"
    options = {"importance": estimator, "model": "tiny", "pruning": "block_wise", "schedule": "one_shot"}
    options |= {
        "recovery": "lora",
        "data": "bundled",
        "evaluation": "quick",
        "stability": "default",
        "tracking": "none",
    }
    return RunResult(
        key=key,
        name=f"tiny-{estimator}-r{ratio:.2f}-one_shot-lora-s{seed}-{key}",
        study=study,
        config={"model": {"name": "tiny"}, "importance": {}, "pruning": {"ratio": ratio}, "seed": seed, "study": study},
        choices=options | choices,
        metrics=metrics | _summary(events, harm * noise.uniform(0.7, 1.3), ratio),
        events=events,
        widths=[{"query_heads": 9, "kv_heads": 3, "mlp_channels": _width(layer, ratio)} for layer in range(LAYERS)],
        environment={"versions": {"torch": "2.13.0"}, "python": "3.11.7", "cpu_count": 2},
        timings={"load": 12.3, "dense": 60.0, "event 1 of 1: score": 30.1, "recovered": 45.2},
    )


def _stage(harm: float, ratio: float, noise: random.Random) -> dict[str, float]:
    found: dict[str, float] = {}
    for task, chance in TASKS.items():
        accuracy = chance + (0.35 - 0.3 * min(harm, 1)) * noise.uniform(0.9, 1.1) if harm else chance + 0.35
        found |= {f"zeroshot/{task}/acc": accuracy, f"zeroshot/{task}/stderr": 0.03, f"zeroshot/{task}/n": 200.0}
        found |= {f"zeroshot/{task}/acc_norm": accuracy + 0.02, f"zeroshot/{task}/chance": chance}
    size = 1.0 if not harm else 1 - ratio
    loss = 4.1 + 2 * harm
    return found | {
        "zeroshot/mean": sum(found[f"zeroshot/{task}/acc"] for task in TASKS) / len(TASKS),
        "zeroshot/mean_above_chance": 0.45 - 0.3 * harm,
        "probe/tok_acc": 0.28 - 0.2 * harm,
        "probe/loss": loss,
        "ppl/passages@128": 60.7 * 7.4**harm,
        "ppl/wikipedia@128": 35.0 * 9.1**harm,
        "params": 134515008 * size,
        "weights_bytes": 538060032 * size,
        "macs": 8606711808 * size,
        "peak_bytes": 540000000 * size,
        "prefill_tok_s@8": 300 / size * noise.uniform(0.9, 1.1),
        "decode_tok_s@1": 15 / size * noise.uniform(0.9, 1.1),
    }


def _events(harm: float, ratio: float, count: int) -> list[dict[str, float]]:
    events = []
    for index in range(count if ratio else 0):
        before, after = (harm * (index + part) / count for part in (0.0, 1.0))
        pre, post, rec = before * 0.55, after, after * 0.55
        row: dict[str, float] = {"event/index": index, "event/ratio_reached": ratio * (index + 1) / count}
        for when, h in (("pre", pre), ("post", post), ("rec", rec)):
            row |= {f"event/tok_acc/{when}": 0.28 - 0.2 * h, f"event/loss/{when}": 4.1 + 2 * h}
        row["event/instability/tok_acc"] = 1 - row["event/tok_acc/post"] / row["event/tok_acc/pre"]
        row["event/instability/loss"] = row["event/loss/post"] - row["event/loss/pre"]
        events.append(row)
    return events


def _summary(events: list[dict[str, float]], harm: float, ratio: float) -> dict[str, float]:
    found = {"generalization/final/tok_acc": 0.28 - 0.11 * harm, "generalization/gain/tok_acc": -0.11 * harm - 0.02}
    found |= {"generalization/gain/loss": -harm, "generalization/gap/loss": 0.1 - harm / 10, "recovery/steps": 16.0}
    if not events:
        return found
    for name in ("tok_acc", "loss"):
        values = [event[f"event/instability/{name}"] for event in events]
        found[f"stability/instability_mean/{name}"] = sum(values) / len(values)
    return found | {"pruned/ratio_asked": ratio, "pruned/ratio_reached": ratio + 0.0007}


def _width(layer: int, ratio: float) -> int:
    return 1536 if layer in (0, LAYERS - 1) else round(1536 * (1 - 1.3 * ratio)) + layer % 3


def make_unfinished(folder: Path, result: RunResult, state: str | None, **status: Any) -> Path:
    """Write the folder of a run that would have had this result, but is in another state; None: it has not begun."""
    run = folder / result.name
    hydra = run / ".hydra"
    write_json(hydra / "config.yaml", result.config)
    write_json(hydra / "hydra.yaml", {"hydra": {"runtime": {"choices": result.choices | {"hydra/launcher": "basic"}}}})
    if state is not None:
        write_status(run, state, **status)
    return run


def write_status(run: Path, state: str, **status: Any) -> None:
    """Write a run's status.json."""
    known = {
        "stage": "done",
        "error": None,
        "started": "2026-11-22T10:00:00+00:00",
        "updated": "2026-11-22T10:10:00+00:00",
    }
    write_json(run / "status.json", {"state": state, **known, **status})


def small_study(folder: Path) -> list[RunResult]:
    """Write 12 runs: 3 ratios, 2 estimators, 2 seeds; the last has failed. Return the results of the others."""
    results = make_study(folder, [0.1, 0.2, 0.5], ["taylor", "l2"], [0, 1])
    failed = results.pop()
    (folder / failed.name / "result.json").unlink()
    error = "RuntimeError: <img src=x onerror=alert(1)> weights are not finite"
    run = make_unfinished(folder, failed, "failed", stage="event 1 of 1: recover", error=error)
    (run / "run.log").write_text("10:00:00 load ...\nTraceback (most recent call last):\n" + error + "\n")
    return results
