"""The jobs of a sweep, composed without being run: what each would do, and in which folder.

Hydra reads all yaml files anew for every job. Here jobs that choose the same options share one reading, so that a hundred
jobs are known in seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONF = Path(__file__).parent.parent / "conf"


@dataclass(frozen=True)
class Job:
    """One job of a sweep."""

    overrides: tuple[str, ...]
    config: DictConfig
    folder: Path


def compose_jobs(loader: ConfigLoader, master: DictConfig, jobs: Sequence[Sequence[str]]) -> list[Job]:
    """Compose jobs as Hydra would.

    Args:
        loader: Hydra's, of this command.
        master: the configuration of the whole sweep.
        jobs: the overrides of every job, as a sweeper makes them.

    Raises:
        HydraException: a job cannot be composed; Hydra's own message.
    """
    shared: dict[tuple[str, ...], DictConfig] = {}
    composed = []
    for lines in jobs:
        overrides = [_parse(line) for line in lines]
        options = tuple(line for line, override in zip(lines, overrides, strict=True) if not _only_sets(override))
        if options not in shared:
            shared[options] = loader.load_sweep_config(master, list(options))
        config = copy.deepcopy(shared[options])
        try:
            for override in filter(_only_sets, overrides):
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        except OmegaConfBaseException:
            config = loader.load_sweep_config(master, list(lines))  # raises with Hydra's message
        composed.append(Job(tuple(lines), config, Path(config.hydra.sweep.dir, config.hydra.sweep.subdir)))
    return composed


def labels(jobs: Sequence[Job]) -> list[str]:
    """Return for every job what it overrides and not all jobs do alike, or its folder's name where that is nothing.

    Keys are cut to their last part where that tells them apart.
    """
    common = set.intersection(*(set(job.overrides) for job in jobs)) if jobs else set()
    own = [[line.partition("=") for line in job.overrides if line not in common] for job in jobs]
    keys = {key for lines in own for key, _, _ in lines}
    short = {key: key.rpartition(".")[2] for key in keys}
    if len(set(short.values())) < len(keys):
        short = dict(zip(keys, keys, strict=True))
    texts = [" ".join(f"{short[key]}={value}" for key, _, value in lines) for lines in own]
    return [text or job.folder.name for text, job in zip(texts, jobs, strict=True)]


@cache
def _parse(line: str) -> Override:
    return OverridesParser.create().parse_override(line)


def _only_sets(override: Override) -> bool:
    """Say whether an override gives a value to a key that is there; any other may change what is composed."""
    key = override.key_or_group
    changes = override.is_add() or override.is_force_add() or override.is_delete() or override.package is not None
    return not (changes or "/" in key or key.startswith("hydra.") or (CONF / key).is_dir())
