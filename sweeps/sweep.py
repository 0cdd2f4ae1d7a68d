"""A sweep from its start to its end.

The surprise: Hydra's own hook for the end of a sweep is skipped when a job failed, and its launchers cannot hand anything to
the program that started them. So the jobs are noted here, and `end` is called when Hydra has returned, however it did.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from evaluation.result import RunResult
from sweeps.objectives import objectives

if TYPE_CHECKING:
    from sweeps.jobs import Job

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent

_jobs: list[Job] = []
"""Of the sweep that this process runs."""


class SweepCallback(Callback):
    """Called by Hydra before it makes the sweeper and the launcher."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Put `StudyLauncher` in front of the chosen launcher, and make the study's folder.

        Hydra's own sweeper is replaced by `GridSweeper`, which does not compose every job twice. Processes that a launcher
        starts find this project's modules wherever they begin.
        """
        sweeper = config.hydra.sweeper["_target_"]
        if config.plan and sweeper.endswith(".OptunaSweeper"):
            sys.exit("plan=true: a search chooses its runs as it goes, there is nothing to plan")
        chosen = OmegaConf.to_container(config.hydra.launcher)
        target = {"_target_": "hydra_plugins.secateur.StudyLauncher", "_recursive_": False, "launcher": chosen}
        with read_write(config.hydra):
            config.hydra.launcher = OmegaConf.create(target)
            if sweeper.endswith(".BasicSweeper"):
                config.hydra.sweeper["_target_"] = "hydra_plugins.secateur.GridSweeper"
            if config.plan:  # which writes nothing, but sweepers do
                self._scratch = TemporaryDirectory(prefix="secateur-plan-")
                config.hydra.sweep.dir = self._scratch.name
        Path(config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def note(jobs: Sequence[Job]) -> None:
    """Remember jobs for the end of the sweep."""
    _jobs.extend(jobs)


def display(launcher: str) -> AbstractContextManager[None]:
    """Return a context that shows the noted jobs while the launcher of that name runs them."""
    from sweeps.live import sweep_display

    return sweep_display(_jobs, in_this_process=launcher == "basic")


def done_before(job: Job) -> JobReturn | None:
    """Return what a job returned when it was run, or None when it is still to be run."""
    result = None if job.config.force else RunResult.read(job.folder / "result.json")
    if result is None:
        return None
    log.info("done before: %s", job.folder)
    found = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
    try:
        found.return_value = objectives(result.metrics, job.config.objectives)
    except ValueError as error:
        found.return_value, found.status = error, JobStatus.FAILED
    return found


def end() -> bool:
    """Report on the sweep that this process has run, if it has.

    Returns:
        Whether nothing is left to be done.
    """
    from sweeps.report import print_plan, print_results

    if not _jobs:
        return True
    if _jobs[0].config.plan:
        print_plan(_jobs)
        return True
    return print_results(_jobs)
