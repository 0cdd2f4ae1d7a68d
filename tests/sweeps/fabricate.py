"""Folders of runs in any state, where the command itself would look for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from conf import identity, schema
from sweeps.jobs import Job, compose_jobs
from tests.evaluation.studies import make_result, write_status
from tests.test_run import FAST


def jobs_of(runs: Path, *overrides: Sequence[str]) -> list[Job]:
    """Return the jobs that the command of `tests.test_run.command` would have."""
    schema.register()
    identity.register()
    with initialize_config_dir(config_dir=str(Path(schema.__file__).parent), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        shared = [*FAST, f"runs_dir={runs}", "study=test"]
        master = hydra.compose_config("config", shared, run_mode=RunMode.MULTIRUN)
        return compose_jobs(hydra.config_loader, master, [[*shared, *own] for own in overrides])


def finish(job: Job, seconds: float = 60.0) -> None:
    """Write the folder of a job as if it had been run."""
    result = make_result("test", job.config.pruning.ratio, "taylor", job.config.seed)
    config = identity.resolved(job.config)
    result = replace(result, name=job.folder.name, config=config, timings={"load": 1.0, "dense": seconds - 1})
    result.write(job.folder / "result.json")
    write_status(job.folder, "done")
