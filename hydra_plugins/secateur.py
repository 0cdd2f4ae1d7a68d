"""What Hydra loads to run a sweep of this project: a launcher that passes on only what is left to do, and a grid.

The surprise: `StudyLauncher` is never chosen on the command line. It is put in front of the launcher that is (by
`sweeps.sweep.SweepCallback`), so that it sees the jobs of every sweeper before any launcher does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.plugins.launcher import Launcher

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig

log = logging.getLogger(__name__)


class StudyLauncher(Launcher):
    """Skips finished runs, and hands the others to the launcher behind it: new ones first, then those that failed before.

    With `plan=true` it launches nothing.
    """

    def __init__(self, launcher: DictConfig) -> None:
        self.behind = launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher behind this one."""
        from hydra.core.plugins import Plugins
        from omegaconf import OmegaConf, read_write

        self.hydra_context = hydra_context
        self.config = config.copy()
        with read_write(self.config.hydra):
            self.config.hydra.launcher = OmegaConf.create(self.behind)
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, self.config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs that are left. Returns what every job returned, now or when it was run."""
        from sweeps import sweep
        from sweeps.jobs import compose_jobs

        jobs = compose_jobs(self.hydra_context.config_loader, self.config, job_overrides)
        sweep.note(jobs)
        if self.config.plan:
            return []
        returned = {index: found for index, job in enumerate(jobs) if (found := sweep.done_before(job))}
        waiting = [index for index in range(len(jobs)) if index not in returned]
        waiting.sort(key=lambda index: (jobs[index].folder / "status.json").exists())
        if waiting:
            with sweep.display(self.config.hydra.runtime.choices["hydra/launcher"]):
                launched = self.launcher.launch([job_overrides[index] for index in waiting], initial_job_idx)
            returned |= dict(zip(waiting, launched, strict=True))
        return [returned[index] for index in range(len(jobs))]


class GridSweeper(BasicSweeper):
    """Hydra's own sweeper: every combination, in batches of `max_batch_size`; a batch with a failure is the last one."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Leave it to `StudyLauncher`, which composes every job before it launches one, and much faster."""
