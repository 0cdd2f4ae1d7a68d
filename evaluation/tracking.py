"""Where a run's figures are shown besides its folder: Weights & Biases, or nowhere.

A tracker is a view: the run folder holds the same figures, so nothing depends on a network or an account.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

TAGGED = ("importance", "pruning", "schedule", "recovery")
"""Groups whose chosen option becomes a tag, behind the model's name."""


@dataclass(frozen=True)
class RunIdentity:
    """How a run is named and filed."""

    key: str
    name: str
    study: str
    choices: dict[str, str]
    """Configuration group -> chosen option."""

    config: dict[str, Any]
    folder: Path
    overrides: list[str]
    """Of the command that makes this run alone."""

    @property
    def job_type(self) -> str:
        """Return baseline (nothing is cut) or prune."""
        return "prune" if self.config["pruning"]["ratio"] else "baseline"

    @property
    def labels(self) -> list[str]:
        """Return what the run is found by: the model's name and what was chosen."""
        return [str(self.config["model"]["name"]), *(self.choices[group] for group in TAGGED)]

    @property
    def command(self) -> str:
        """The command that makes this one run."""
        return shlex.join(["python", "run.py", *self.overrides])


def single_run(overrides: Sequence[str], mode: str) -> list[str]:
    """Return the overrides that make one run of a sweep alone, whatever the experiment preset says."""
    return [*overrides, "hydra.mode=RUN"] if mode.endswith("MULTIRUN") else list(overrides)


class Tracker:
    """Where a run's figures are sent. A context manager that knows whether the run failed; this one sends nothing."""

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def log(self, metrics: dict[str, float]) -> None:
        """Add one point to the curves."""

    def summary(self, metrics: dict[str, float]) -> None:
        """Set the figures that runs are compared by."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""

    def image(self, name: str, path: Path) -> None:
        """Log a picture."""

    def artifact(self, name: str, kind: str, path: Path) -> None:
        """Log a file or a folder."""


@dataclass
class TrackingConfig:
    """Base of the `tracking` options."""

    def start(self, identity: RunIdentity) -> Tracker:
        """Return the tracker of one run."""
        raise NotImplementedError


@dataclass
class NoTracking(TrackingConfig):
    """Send nothing."""

    def start(self, identity: RunIdentity) -> Tracker:
        """Return a tracker that does nothing."""
        return Tracker()


@dataclass
class WandbTracking(TrackingConfig):
    """Weights & Biases."""

    project: str = "secateur"
    entity: str | None = None
    mode: str = "auto"
    """online, offline, shared or disabled; auto: online in a run that a W&B agent started, else offline. The yaml takes
    WANDB_MODE from the environment when that is set."""

    tags: list[str] = field(default_factory=list)
    """Added to the model, estimator, schedule and recovery."""

    log_model: bool = False
    """Whether the recovered checkpoint is logged as an artifact too."""

    system_metrics: bool = False
    """Whether W&B samples processor and memory use."""

    def __post_init__(self) -> None:
        modes = ("auto", "online", "offline", "shared", "disabled")
        if self.mode not in modes:
            raise ValueError(f"tracking.mode={self.mode}: must be one of {', '.join(modes)} (WANDB_MODE sets it)")
        if self.mode == "auto":
            self.mode = "online" if under_agent() else "offline"
        for tag in self.tags:
            if not 1 <= len(tag) <= TAG_LENGTH:
                raise ValueError(f"tracking.tags: {tag!r} has {len(tag)} characters; W&B takes 1 to {TAG_LENGTH}")

    def start(self, identity: RunIdentity) -> Tracker:
        """Return a tracker whose W&B run begins when it is entered."""
        if self.mode == "disabled":
            return Tracker()
        from evaluation.wandb_tracker import WandbTracker

        return WandbTracker(self, identity)


RUN_ID = "wandb/run-id.txt"
"""Where a run folder keeps the id of its W&B run."""

TAG_LENGTH = 64
"""The most characters that W&B takes in a tag."""


def under_agent() -> bool:
    """Say whether a W&B agent started this process. It owns the W&B run: its id, its project, and that it is online."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))
