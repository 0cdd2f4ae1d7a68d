"""Lack of memory while text is scored: in smaller batches to the same scores, and never between the probes of a cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluation.batch_size import BatchSize, in_one_size, is_out_of_memory
from evaluation.config import CostConfig, EvaluationConfig
from evaluation.measure import Evaluator
from evaluation.perplexity import score_text, text_batch, token_divergence
from evaluation.stability import StabilityConfig
from pruning.cache import Cache
from tests.conftest import build

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB."
CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."
WINDOWS = "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried to ..."


class SmallMemory:
    """Lets a model run so many tokens at once, and keeps the shapes of the batches that it ran."""

    def __init__(self, model: PreTrainedModel, tokens: int, error: RuntimeError | None = None) -> None:
        self.tokens, self.error, self.run = tokens, error or torch.OutOfMemoryError(CUDA), model.forward
        self.shapes: list[tuple[int, ...]] = []
        model.forward = self.forward  # type: ignore[method-assign]

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        if input_ids.numel() > self.tokens:
            raise self.error
        self.shapes.append(tuple(input_ids.shape))
        return self.run(input_ids=input_ids, **options)


@pytest.fixture
def evaluator(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Evaluator:
    """Scores 12 blocks of 24 tokens around cuts, and windows of 24 and 48 tokens, 8 at once."""
    text = tmp_path / "river.txt"
    text.write_text("\n\n".join(f"Part {index}: the river ran under a bridge." for index in range(60)), "utf-8")
    config = EvaluationConfig(
        texts={"river": str(text)}, windows=[24, 48], text_tokens=480, generations=0, cost=CostConfig(enabled=False)
    )
    stability = StabilityConfig(text=str(text), blocks=12, length=24)
    return Evaluator(config, stability, tokenizer, Cache(tmp_path / "cache"))


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(CUDA), RuntimeError(CPU), RuntimeError(WINDOWS)], ids=str)
def test_text_is_scored_in_smaller_batches_of_one_size_to_the_same_scores(
    evaluator: Evaluator, llama: PreTrainedModel, error: RuntimeError, caplog: pytest.LogCaptureFixture
) -> None:
    blocks = evaluator.probe_blocks
    wanted = score_text(llama, blocks, 8)
    memory = SmallMemory(llama, 2 * 24 + 23, error)
    found = evaluator.snapshot(llama).text(blocks)
    assert memory.shapes == [(2, 24)] * 6
    assert found.loss_sums == pytest.approx(wanted.loss_sums, rel=1e-5)
    assert found.correct == wanted.correct
    other = evaluator.snapshot(build("llama_mha")).text(blocks)  # a model that is scored later begins with what fitted
    assert evaluator.text_batch(evaluator.probe_blocks).size == 2
    assert len(other.loss_sums) == 12
    assert warnings_of(caplog) == [
        "out of memory with 8 blocks of text in a batch: smaller batches from here on",
    ]


@pytest.mark.parametrize(("length", "blocks"), [(24, 8), (128, 8), (129, 7), (512, 2), (1024, 1), (2048, 1)])
def test_long_blocks_are_scored_by_as_many_tokens(length: int, blocks: int) -> None:
    assert text_batch(8, length).size == blocks


def test_windows_of_another_length_keep_their_own_batches(evaluator: Evaluator, llama: PreTrainedModel) -> None:
    memory = SmallMemory(llama, 8 * 24)
    evaluator.snapshot(llama).measure()
    assert {shape for shape in memory.shapes if shape[1] == 24} == {(8, 24), (4, 24)}  # 12 and 20 blocks in eights
    assert {shape for shape in memory.shapes if shape[1] == 48} == {(4, 48), (2, 48)}  # 10 blocks in fours


def test_scores_are_kept_under_the_size_they_were_taken_in(evaluator: Evaluator, llama: PreTrainedModel) -> None:
    blocks = evaluator.probe_blocks
    evaluator.snapshot(llama).text(blocks)
    evaluator.text_batch(blocks).size = 4
    evaluator.snapshot(llama).text(blocks)
    sizes = [json.loads(path.read_text())["inputs"]["batch_size"] for path in evaluator.cache.root.glob("text/*.json")]
    assert sorted(sizes) == [4, 8]


def test_both_probes_of_a_cut_are_scored_in_the_size_that_fits_before_it(
    evaluator: Evaluator, llama: PreTrainedModel
) -> None:
    """Also where the first is in the cache, in another size."""
    full = evaluator.snapshot(llama).probe()
    memory = SmallMemory(llama, 3 * 24)
    pre = evaluator.before_cut(llama).probe()
    assert memory.shapes == [(2, 24)] + [(2, 24)] * 6  # the batch that is tried, then the probe
    assert pre.text.correct == full.text.correct
    memory.shapes.clear()
    with torch.no_grad():
        llama.model.layers[1].mlp.down_proj.weight[3, 5] += 1.0
    post = evaluator.snapshot(llama).probe(after_cut=True)
    assert memory.shapes == [(2, 24)] * 6
    assert post.text.loss_sums != pre.text.loss_sums


def test_a_probe_after_a_cut_is_not_taken_in_smaller_batches(evaluator: Evaluator, llama: PreTrainedModel) -> None:
    evaluator.before_cut(llama).probe()
    memory = SmallMemory(llama, 3 * 24)
    with torch.no_grad():
        llama.model.layers[1].mlp.down_proj.weight[3, 5] += 1.0
    with pytest.raises(
        torch.OutOfMemoryError, match="batches of 8 blocks of text fitted before the cut.*Free the memory"
    ):
        evaluator.snapshot(llama).probe(after_cut=True)
    assert memory.shapes == []
    assert evaluator.text_batch(evaluator.probe_blocks).size == 8


def test_a_single_block_that_does_not_fit_is_an_error_with_what_helps(
    evaluator: Evaluator, llama: PreTrainedModel
) -> None:
    SmallMemory(llama, 23)
    with pytest.raises(torch.OutOfMemoryError, match=r"1 blocks of text do not fit.*stability\.length.*model\.dtype"):
        evaluator.snapshot(llama).text(evaluator.probe_blocks)


def test_the_divergence_takes_smaller_batches_without_changing_those_of_probes(
    evaluator: Evaluator, llama: PreTrainedModel
) -> None:
    other = build("llama_mha")
    wanted = token_divergence(llama, other, evaluator.probe_blocks)
    evaluator.stability.kl = True
    before = evaluator.snapshot(llama)
    SmallMemory(llama, 5 * 24)
    found = evaluator.snapshot(other).divergence_from(before)
    assert found == pytest.approx(wanted, rel=1e-4)
    assert evaluator.divergence_batch.size == 4
    assert evaluator.text_batch(evaluator.probe_blocks).size == 8


def test_other_errors_are_raised_as_they_are() -> None:
    error = RuntimeError("sizes do not match")

    def fail(size: int) -> None:
        raise error

    for fixed in (False, True):
        with pytest.raises(RuntimeError, match="sizes do not match") as raised:
            in_one_size(fail, BatchSize(8, "blocks", ""), fixed=fixed)
        assert raised.value is error


def test_the_processors_own_allocator_is_understood() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)
    assert is_out_of_memory(raised.value)
