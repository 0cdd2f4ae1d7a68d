"""Logging a run to Weights & Biases, or nowhere. The only module that imports wandb.

W&B is a view: the run folder holds the same figures, so nothing depends on a network or an account.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from evaluation.report import per_task_table

if TYPE_CHECKING:
    from evaluation.result import RunResult
    from evaluation.run_folder import RunFolder

TAGGED = ("model", "importance", "pruning", "schedule", "recovery")
"""Groups whose chosen option becomes a tag."""


@dataclass(frozen=True)
class RunIdentity:
    """How a run is named and filed."""

    key: str
    name: str
    study: str
    job_type: str
    """baseline (nothing is cut) or prune."""

    choices: dict[str, str]
    """Configuration group -> chosen option."""

    config: dict[str, Any]
    folder: Path


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
    mode: str = "offline"
    """offline, online, shared or disabled; the yaml takes WANDB_MODE from the environment when that is set."""

    tags: list[str] = field(default_factory=list)
    """Added to the model, estimator, schedule and recovery."""

    log_model: bool = False
    """Whether the recovered checkpoint is logged as an artifact too."""

    system_metrics: bool = False
    """Whether W&B samples processor and memory use."""

    def __post_init__(self) -> None:
        modes = ("online", "offline", "shared", "disabled")
        if self.mode not in modes:
            raise ValueError(f"tracking.mode={self.mode}: must be one of {', '.join(modes)} (WANDB_MODE sets it)")

    def start(self, identity: RunIdentity) -> Tracker:
        """Return a tracker whose W&B run begins when it is entered."""
        return WandbTracker(self, identity)


class WandbTracker(Tracker):
    """One W&B run for one job. An error inside the context marks it failed."""

    def __init__(self, config: WandbTracking, identity: RunIdentity) -> None:
        self.config = config
        self.identity = identity

    def __enter__(self) -> WandbTracker:
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        identity, config = self.identity, self.config
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            mode=config.mode,  # type: ignore[arg-type]
            dir=str(identity.folder),
            id=self._run_id(),
            name=identity.name,
            group=identity.study,
            job_type=identity.job_type,
            tags=[*(identity.choices[group] for group in TAGGED), *config.tags],
            config=identity.config | {"choices": identity.choices},
            reinit="finish_previous",
            settings=wandb.Settings(x_disable_stats=not config.system_metrics, console="off"),
        )
        for prefix, step in (("event/*", "event/index"), ("recovery/*", "recovery/step")):
            self._run.define_metric(step, hidden=True)
            self._run.define_metric(prefix, step_metric=step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run.finish(exit_code=0 if kind is None else 1)

    def log(self, metrics: dict[str, float]) -> None:
        """Add one point to the curves; its step is the `event/index` or `recovery/step` in it."""
        self._run.log(metrics)

    def summary(self, metrics: dict[str, float]) -> None:
        """Set the figures that runs are compared by."""
        self._run.summary.update(metrics)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""
        import wandb

        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def artifact(self, name: str, kind: str, path: Path) -> None:
        """Log a file or a folder; a model only where `log_model` asks for it."""
        import wandb

        if kind == "model" and not self.config.log_model:
            return
        artifact = wandb.Artifact(name=name, type=kind)
        if path.is_dir():
            artifact.add_dir(str(path))
        else:
            artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def _run_id(self) -> str | None:
        """Return a new id that begins with the run's key; None under a W&B agent, which names its own runs.

        An id is never used twice: W&B refuses those of deleted runs, and a forced run must not write into an older one.
        """
        if os.environ.get("WANDB_SWEEP_ID"):
            return None
        return f"{self.identity.key}-{secrets.token_hex(4)}"


def publish(result: RunResult, run: RunFolder, tracker: Tracker) -> None:
    """Send a finished run's figures: summary values, the per-task table, the result file, and the model if asked for."""
    tracker.summary(result.metrics)
    tracker.table("zeroshot_per_task", *per_task_table(result.metrics))
    tracker.artifact(f"result-{result.key}", "result", run.path / "result.json")
    if run.model.exists():
        tracker.artifact(f"model-{result.key}", "model", run.model)
