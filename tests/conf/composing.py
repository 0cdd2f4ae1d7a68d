"""Composes the project's configuration."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from hydra import compose
from omegaconf import DictConfig

from conf import schema

CONF = Path(schema.__file__).parent


@lru_cache
def composed(*overrides: str) -> DictConfig:
    """Return the configuration with some overrides; needs the fixture `registered`."""
    return compose("config", overrides=list(overrides), return_hydra_config=True)
