"""Reading W&B's offline files back with the vendor's own reader, and an identity to write them with."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.result import RunResult
from evaluation.tracking import RunIdentity

CHOICES = {
    "model": "tiny_llama",
    "data": "bundled",
    "importance": "l2",
    "pruning": "block_wise",
    "schedule": "linear",
    "recovery": "lora",
    "tracking": "wandb",
}
CONFIG = {
    "seed": 3,
    "pruning": {"ratio": 0.2},
    "model": {"name": "tiny_llama"},
    "tracking": {"project": "mine", "mode": "auto"},
    "force": False,
}
EVENTS = [{"event/index": index, "event/instability/tok_acc": 0.1 * index} for index in range(3)]
METRICS = {
    "recovered/zeroshot/mean": 0.5,
    "dense/zeroshot/piqa/acc": 0.6,
    "dense/zeroshot/piqa/n": 40,
    "dense/ppl/wiki.test@128": 30.0,
    "stability/recovered_frac/tok_acc": float("nan"),
}


def identity(folder: Path, name: str = "tiny-run", **changes: Any) -> RunIdentity:
    made = RunIdentity("0123abcd", name, "mystudy", CHOICES, CONFIG, folder, ["seed=3", "data.path=my text"])
    return replace(made, **changes)


def result() -> RunResult:
    return RunResult("0123abcd", "tiny-run", "mystudy", CONFIG, CHOICES, METRICS, EVENTS, [], {}, {})


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))


def inspect(file: Path, *options: str) -> str:
    """Read a run file with the vendor's own reader, directly where its program takes these flags."""
    import wandb.util

    fast = [wandb.util.get_core_path(), "leet", "inspect", f"--run-file={file}", "--json", "--no-observability"]
    slow = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    for command in ([*fast, *options], [*slow, *options, str(file)]):
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if found.returncode == 0 and found.stdout.strip():
            return found.stdout
    raise AssertionError(f"wandb cannot read its own file: {found.stderr}")


def summary(file: Path) -> dict[str, Any]:
    return json.loads(inspect(file, "--summary"))


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in inspect(file).splitlines() if line.strip()]


def history(file: Path) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records(file) if record["type"] == "history"]
