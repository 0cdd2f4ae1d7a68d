from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import evaluation.perplexity
import evaluation.zeroshot
from evaluation.config import CostConfig, EvaluationConfig
from evaluation.measure import Evaluator, staged
from evaluation.stability import StabilityConfig
from pruning.cache import Cache
from tests.conftest import build

COST = CostConfig(macs_tokens=8, batch_sizes=[2], prefill_tokens=16, decode_tokens=2, repetitions=2)
QUICK = CostConfig(enabled=False)


@pytest.fixture(autouse=True)
def own_dataset_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {"goal": f"move stone {index}", "sol1": "push it hard", "sol2": "sing to it", "label": index % 2}
        for index in range(6)
    ]
    (tmp_path / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    paragraphs = [f"Paragraph {index}: the river ran under bridge {index * 7}." for index in range(40)]
    (tmp_path / "river.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    (tmp_path / "short.txt").write_text("Too short.", encoding="utf-8")
    return tmp_path


def evaluator(folder: Path, tokenizer: PreTrainedTokenizerBase, text: str = "river.txt", **options: Any) -> Evaluator:
    given = {
        "tasks": ["piqa"],
        "data_dir": str(folder),
        "texts": {"river": str(folder / "river.txt")},
        "windows": [16, 32],
        "text_tokens": 256,
        "cost": QUICK,
    }
    stability = StabilityConfig(text=str(folder / text), blocks=8, length=24, resamples=50)
    return Evaluator(EvaluationConfig(**(given | options)), stability, tokenizer, Cache(folder / "cache"))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    score_text, run_task = evaluation.perplexity.score_text, evaluation.zeroshot.run_task

    def count_text(*args: Any, **options: Any) -> Any:
        calls.append("text")
        return score_text(*args, **options)

    def count_task(*args: Any, **options: Any) -> Any:
        calls.append("task")
        return run_task(*args, **options)

    monkeypatch.setattr(evaluation.perplexity, "score_text", count_text)
    monkeypatch.setattr(evaluation.zeroshot, "run_task", count_task)
    return calls


def test_every_measure_is_there_under_its_name(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    found = evaluator(folder, tokenizer, cost=COST).snapshot(llama).measure()
    expected = {
        *(f"zeroshot/piqa/{name}" for name in ("acc", "acc_norm", "stderr", "n", "chance")),
        *("zeroshot/mean", "zeroshot/mean_stderr", "zeroshot/mean_tasks"),
        *("probe/tok_acc", "probe/loss", "ppl/river@16", "ppl/river@32"),
        *("bits_per_byte/river@16", "bits_per_byte/river@32", "params", "weights_bytes", "macs"),
        *(f"{work}_tok_s{spread}@2" for work in ("prefill", "decode") for spread in ("", "_iqr")),
    }
    above = {f"zeroshot/mean_above_chance{end}" for end in ("", "_stderr", "_tasks")}
    assert expected <= set(found) <= expected | above | {"peak_bytes"}


def test_a_model_measured_twice_has_equal_figures_and_is_scored_once(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, counted: list[str]
) -> None:
    first = evaluator(folder, tokenizer).snapshot(llama).measure()
    assert sorted(counted) == ["task", "text", "text", "text"]
    again = evaluator(folder, tokenizer).snapshot(build("llama_gqa_tied")).measure()
    assert again == first
    assert len(counted) == 4


def test_the_noise_floor_is_measured_of_the_dense_model_only_and_once(
    tokenizer: PreTrainedTokenizerBase, folder: Path, counted: list[str]
) -> None:
    bench = evaluator(folder, tokenizer, texts={}, noise_items=4)
    dense, other = build("llama_gqa_tied"), build("llama_mha")
    found = bench.snapshot(dense).measure()
    assert found["zeroshot/piqa/noise_floor"] == 0  # in float32
    assert 0 <= found["zeroshot/piqa/noise_nats"] < 1e-3
    assert not [name for name in bench.snapshot(other).measure() if "noise" in name]
    assert counted.count("task") == 3
    assert evaluator(folder, tokenizer, texts={}, noise_items=4).snapshot(dense).measure() == found
    assert counted.count("task") == 3


def test_the_noise_of_a_16_bit_model_is_measured_by_default(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    assert not [name for name in evaluator(folder, tokenizer).snapshot(llama).measure() if "noise" in name]
    found = evaluator(folder, tokenizer).snapshot(llama.bfloat16()).measure()
    assert found["zeroshot/piqa/noise_nats"] > 0
    assert found["zeroshot/mean_noise_floor"] == found["zeroshot/piqa/noise_floor"]


def test_a_changed_weight_is_measured_anew(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, counted: list[str]
) -> None:
    bench = evaluator(folder, tokenizer)
    before = bench.snapshot(llama)
    first = before.measure()
    with torch.no_grad():
        llama.model.layers[1].mlp.down_proj.weight[3, 5] += 1.0
    after = bench.snapshot(llama)
    assert after.fingerprint != before.fingerprint
    assert after.measure() != first
    assert sorted(counted) == ["task"] * 2 + ["text"] * 6


def test_perplexity_is_that_of_consecutive_windows_by_hand(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    found = evaluator(folder, tokenizer, text_tokens=None).snapshot(llama).measure()["ppl/river@32"]
    ids = list((folder / "river.txt").read_text(encoding="utf-8").encode())
    assert len(tokenizer((folder / "river.txt").read_text(encoding="utf-8"))["input_ids"]) == len(ids)
    tokens = tokenizer((folder / "river.txt").read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][0]
    loss, count = 0.0, 0
    for start in range(0, len(tokens) - 31, 32):
        window = tokens[start : start + 32]
        with torch.no_grad():
            scores = torch.log_softmax(llama(window.unsqueeze(0)).logits[0].double(), dim=-1)
        loss -= sum(float(scores[place, window[place + 1]]) for place in range(31))
        count += 31
    assert found == pytest.approx(math.exp(loss / count), rel=1e-4)


def test_the_text_tokens_limit_each_corpus(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    blocks = evaluator(folder, tokenizer).text_blocks
    assert {name: tuple(block.shape) for name, block in blocks.items()} == {"river@16": (16, 16), "river@32": (8, 32)}


def test_a_probe_holds_the_zero_shot_mean_only_where_asked(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, counted: list[str]
) -> None:
    bench = evaluator(folder, tokenizer)
    assert bench.snapshot(llama).probe().zeroshot is not None
    bench = evaluator(folder, tokenizer)
    bench.stability.zeroshot = False
    counted.clear()
    assert bench.snapshot(build("llama_mha")).probe().zeroshot is None
    assert counted == ["text"]


def test_without_tasks_texts_and_cost_only_the_probe_is_measured(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    bench = evaluator(folder, tokenizer, tasks=[], texts={})
    assert set(bench.snapshot(llama).measure()) == {"probe/tok_acc", "probe/loss"}
    assert bench.snapshot(llama).probe().zeroshot is None


def test_a_control_is_scored_on_tasks_only_where_asked(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    metrics, probe = evaluator(folder, tokenizer).snapshot(llama).measure_control()
    assert probe.measures()["zeroshot"] == pytest.approx(metrics["zeroshot/mean"])
    metrics, probe = evaluator(folder, tokenizer, control_zeroshot=False).snapshot(llama).measure_control()
    assert probe.zeroshot is None
    assert set(metrics) == {"probe/tok_acc", "probe/loss"}


def test_outcomes_are_of_every_item_and_every_window_without_measuring_again(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, counted: list[str]
) -> None:
    snapshot = evaluator(folder, tokenizer).snapshot(llama)
    metrics = snapshot.measure()
    counted.clear()
    found = snapshot.outcomes()
    assert counted == []
    assert set(found) == {"zeroshot/piqa", "texts/probe", "texts/river@16", "texts/river@32", "generations"}
    assert [item["doc_id"] for item in found["zeroshot/piqa"]["outcomes"]] == list(range(6))
    text = found["texts/river@32"]
    assert sum(text["loss_sums"]) / (8 * 31) == pytest.approx(math.log(metrics["ppl/river@32"]))
    assert len({found[name]["blocks"] for name in found if name.startswith("texts/")}) == 3
    again = evaluator(folder, tokenizer).snapshot(build("llama_mha")).outcomes()
    assert again["texts/river@32"]["blocks"] == text["blocks"]


def test_a_pruned_model_is_timed_against_a_dense_one_only_where_that_is_asked_for(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    loaded = []

    def load_dense() -> PreTrainedModel:
        loaded.append(build("llama_gqa_tied"))
        return loaded[-1]

    found = evaluator(folder, tokenizer, tasks=[], cost=COST).snapshot(llama).measure(load_dense)
    assert {name for name in found if "speedup" in name} == {
        *("prefill_speedup@2", "prefill_speedup_iqr@2", "decode_speedup@2", "decode_speedup_iqr@2")
    }
    assert len(loaded) == 1
    for cost in (replace(COST, paired=False), QUICK):
        found = evaluator(folder, tokenizer, tasks=[], cost=cost).snapshot(llama).measure(load_dense)
        assert not any("speedup" in name for name in found)
    assert len(loaded) == 1


def test_bits_per_byte_are_those_of_the_bytes_behind_the_first_of_every_window(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    text = (folder / "river.txt").read_text(encoding="utf-8").replace("river", "fl\u0151v")
    (folder / "river.txt").write_text(text, encoding="utf-8")
    found = evaluator(folder, tokenizer, text_tokens=None).snapshot(llama).measure()
    bits_per_token = math.log2(found["ppl/river@32"])
    assert found["bits_per_byte/river@32"] == pytest.approx(bits_per_token)  # this tokenizer has one token a byte


def test_the_mean_above_chance_is_over_the_dense_models_tasks(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    bench = evaluator(folder, tokenizer)
    dense, other = bench.snapshot(llama), bench.snapshot(build("llama_mha"))
    good = {"acc": 1.0, "stderr": 0.0, "n": 6, "chance": 0.5}
    bench.scored[dense.fingerprint] = {"piqa": {"metrics": good}}
    bench.scored[other.fingerprint] = {"piqa": {"metrics": good | {"acc": 0.1}}}
    assert other.zeroshot_metrics()["zeroshot/mean_above_chance"] == 0.1


def test_a_text_that_is_too_short_names_its_key(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    short = str(folder / "short.txt")
    with pytest.raises(ValueError, match=r"evaluation\.texts\.mine.*16 windows of 16 tokens"):
        evaluator(folder, tokenizer, texts={"mine": short})
    with pytest.raises(ValueError, match=r"evaluation\.texts\.mine.*1 windows of 16 tokens"):
        evaluator(folder, tokenizer, texts={"mine": short}, text_tokens=None)
    with pytest.raises(ValueError, match=r"stability\.text.*8 windows of 24 tokens"):
        evaluator(folder, tokenizer, text="short.txt")


def test_fewer_text_tokens_than_a_window_is_an_error_that_names_the_key(
    tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    with pytest.raises(ValueError, match=r"evaluation\.(text_tokens|windows)"):
        evaluator(folder, tokenizer, text_tokens=20, windows=[32])


def test_a_text_that_is_not_there_names_its_key(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluation\.texts\.mine=.*nowhere\.txt"):
        evaluator(folder, tokenizer, texts={"mine": str(folder / "nowhere.txt")})
    with pytest.raises(ValueError, match=r"evaluation\.texts\.mine=wikipedai: must be one of"):
        evaluator(folder, tokenizer, texts={"mine": "wikipedai"})


def test_missing_items_are_found_before_anything_is_measured(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluation\.data_dir"):
        evaluator(folder, tokenizer, tasks=["piqa", "boolq"])


def test_a_stage_stands_before_every_name() -> None:
    assert staged("dense", {"ppl/a@128": 3.0, "params": 4}) == {"dense/ppl/a@128": 3.0, "dense/params": 4}
