"""The result of one run: one versioned JSON file, and the table that a person reads."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pruning.files import write_json

SCHEMA = 1
"""Raised when the meaning of a field changes."""


@dataclass(frozen=True)
class RunResult:
    """Everything that is known of a finished run. W&B, tables and dashboards are views of it."""

    key: str
    """Hash of the configuration: the same for every run of it."""

    name: str
    study: str
    config: dict[str, Any]
    choices: dict[str, str]
    """Configuration group -> chosen option."""

    metrics: dict[str, float]
    events: list[dict[str, float]]
    widths: list[dict[str, int]]
    """Query heads, KV heads and MLP channels of every layer of the pruned model."""

    environment: dict[str, Any]
    timings: dict[str, float]
    """Stage -> seconds."""

    trajectory: list[dict[str, float]] = field(default_factory=list)
    """Scores of the watched texts in the course of the recovery, by `step`; empty in results from before there were any."""

    inputs: dict[str, str] = field(default_factory=dict)
    """Key of the configuration -> digest of the file or folder that it names, as the run found it."""

    status: str = "done"
    schema: int = SCHEMA

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_json(path, asdict(self))

    @staticmethod
    def read(path: Path) -> RunResult | None:
        """Return the result in `path`; None when there is none that can be believed."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["schema"] != SCHEMA or found["status"] != "done":
                return None
            return RunResult(**found)
        except (OSError, ValueError, KeyError, TypeError):
            return None


def finished_runs(paths: Sequence[Path]) -> list[tuple[Path, RunResult]]:
    """Return the finished runs in `paths`, which are run folders or folders of them.

    Raises:
        ValueError: there is none in one of them.
    """
    found = []
    for path in paths:
        folders = [path] if (path / "result.json").exists() else sorted(path.glob("*/"))
        runs = [(folder, result) for folder in folders if (result := RunResult.read(folder / "result.json"))]
        if not runs:
            raise ValueError(f"{path}: no finished run there (a run is finished when it has a result.json)")
        found += runs
    return found


def describe_environment(device: str) -> dict[str, Any]:
    """Return what the figures may depend on besides the configuration: versions, machine, threads, revision."""
    import torch

    packages = ("torch", "transformers", "peft", "lm-eval", "datasets", "hydra-core", "wandb", "secateur")
    return {
        "versions": {name: _version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "peak_process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "revision": _git_revision(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Return the commit of the code, with a plus sign when files differ from it; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
