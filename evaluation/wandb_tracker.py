"""One W&B run for one job. The only module that imports wandb.

What goes wrong with W&B after the start never fails the run, whose figures are in its folder: it is said in the log, and
`python -m evaluation.publish <run folder>` sends everything again.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from evaluation.tracking import RUN_ID, TAG_LENGTH, RunIdentity, Tracker, WandbTracking
from pruning.files import write_text

log = logging.getLogger(__name__)

STEPS = {"event/*": "event/index", "recovery/*": "recovery/step"}
"""Curves -> what they are drawn over."""


class WandbTracker(Tracker):
    """A W&B run. An error inside the context marks it failed, an interrupt killed.

    A run folder has one W&B run: when a run that was killed or failed is started again, the W&B run goes on too, and
    points that it has are not added twice. `force=true` begins another one.
    """

    def __init__(self, config: WandbTracking, identity: RunIdentity) -> None:
        self.config = config
        self.identity = identity
        self._done: dict[str, float] = {}
        """Step metric -> the last step that the W&B run has."""

        self._sound = True

    def __enter__(self) -> WandbTracker:
        run_id = wandb_run_id(self.identity)
        drop_unfinished(self.identity.folder, run_id)
        try:
            self._run = self._begin(run_id)
        except Exception as error:
            raise ValueError(
                f"tracking.mode={self.config.mode}: W&B could not begin a run ({error}). `wandb login` stores a key; "
                "tracking.mode=offline needs none; force=true begins anew when the run was deleted there"
            ) from error
        for curves, step in STEPS.items():
            self._run.define_metric(step, hidden=True)
            self._run.define_metric(curves, step_metric=step)
            if self._run.resumed and (last := self._run.summary.get(step)) is not None:
                self._done[step] = last
        if self.config.mode == "online":
            log.info("W&B: %s", self._run.url)
        return self

    def _begin(self, run_id: str | None) -> Any:
        os.environ.setdefault("WANDB_SILENT", "true")  # what matters is in the log
        import wandb

        identity, config = self.identity, self.config
        return wandb.init(
            project=config.project,
            entity=config.entity,
            mode=config.mode,  # type: ignore[arg-type]
            dir=str(identity.folder),
            id=run_id,
            resume="allow" if run_id else None,
            name=identity.name,
            group=identity.study,
            job_type=identity.job_type,
            notes=identity.command,
            tags=tags(identity, config),
            config=identity.config | {"choices": identity.choices},
            reinit="finish_previous",
            settings=wandb.Settings(
                x_disable_stats=not config.system_metrics,
                x_transaction_log_flush_interval=1,  # s; `wandb sync` gives up at the file of a run killed before
                console="off",
            ),
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.summary({"error": "" if kind is None else f"{kind.__name__}: {error}"[:1000]})
        code = 0 if kind is None else 255 if kind is KeyboardInterrupt else 1  # 255 is what W&B calls killed
        self._send(lambda: self._run.finish(exit_code=code))
        if not self._sound:
            log.warning("once the run is done, `python -m evaluation.publish %s` sends it again", self.identity.folder)
        elif self.config.mode == "offline":
            log.info("W&B is offline: `wandb sync %s` uploads this run", self._run.settings.sync_dir)

    def log(self, metrics: dict[str, float]) -> None:
        """Add one point to the curves; its step is the `event/index` or `recovery/step` in it."""
        if any(metrics[step] <= last for step, last in self._done.items() if step in metrics):
            return
        self._send(lambda: self._run.log(metrics))

    def summary(self, metrics: dict[str, Any]) -> None:
        """Set the figures that runs are compared by."""
        self._send(lambda: self._run.summary.update(metrics))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""
        import wandb

        self._send(lambda: self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])}))

    def image(self, name: str, path: Path) -> None:
        """Log a picture."""
        import wandb

        self._send(lambda: self._run.log({name: wandb.Image(str(path))}))

    def artifact(self, name: str, kind: str, path: Path) -> None:
        """Log a file or a folder; a model only where `log_model` asks for it."""
        import wandb

        if kind == "model" and not self.config.log_model:
            return

        def send() -> None:
            artifact = wandb.Artifact(name=name, type=kind)
            if path.is_dir():
                artifact.add_dir(str(path), policy="immutable")  # no second copy of the weights
            else:
                artifact.add_file(str(path))
            self._run.log_artifact(artifact)

        self._send(send)

    def _send(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # whatever wandb, its service or the network come up with
            if self._sound:
                log.warning("W&B does not get everything of this run: %s: %s", type(error).__name__, error)
            self._sound = False


def tags(identity: RunIdentity, config: WandbTracking) -> list[str]:
    """Return the labels of a run and the user's tags, each once and as long as W&B takes them."""
    return list(dict.fromkeys(tag[:TAG_LENGTH] for tag in (*identity.labels, *config.tags)))


def wandb_run_id(identity: RunIdentity) -> str | None:
    """Return the id of the folder's W&B run, kept in the folder; a new one for a forced run.

    None where the environment names the run, as W&B's agents do.
    """
    if os.environ.get("WANDB_RUN_ID"):
        return None
    place = identity.folder / RUN_ID
    if place.exists() and not identity.config.get("force"):
        return place.read_text(encoding="utf-8").strip()
    found = f"{identity.key}-{secrets.token_hex(4)}"
    write_text(place, found + "\n")
    return found


def drop_unfinished(folder: Path, run_id: str | None) -> None:
    """Remove the offline files of attempts that did not finish, and that this one replaces.

    `wandb sync` gives up on a W&B run with a file that was cut off, and would add the points of the others up.
    """
    if (folder / "result.json").exists():
        return
    for attempt in (folder / "wandb").glob(f"offline-run-*-{run_id}"):
        if not list(attempt.glob("*.synced")):
            shutil.rmtree(attempt)
