"""Tiny models made at run time, a cache in a temporary folder, and the house's configuration composed once per test."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads would only wait for each other
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="secateur-tests-")  # code of models saved by tests

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.cache import Cache
from pruning.model import byte_tokenizer
from tests.zoo import MODELS, SIZES, build

__all__ = ["MODELS", "SIZES", "build"]


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(request.param)


@pytest.fixture
def llama() -> PreTrainedModel:
    return build("llama_gqa_tied")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return byte_tokenizer()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(2, 258, (6, 24), generator=torch.Generator().manual_seed(0))
