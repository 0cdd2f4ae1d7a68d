from __future__ import annotations

import json
import random
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import evaluation.zeroshot
from evaluation.precision import noise_metrics
from evaluation.tasks import STOCK_FILES
from evaluation.zeroshot import (
    ZeroShot,
    beats_chance,
    chance_level,
    main_metric,
    task_metrics,
    zeroshot_metrics,
)
from pruning.cache import Cache
from tests.conftest import build

WORDS = ["red", "blue", "tree", "river", "stone", "cloud", "small", "large", "runs", "sleeps", "house", "door", "milk"]
COUNT = 12


@pytest.fixture(autouse=True)
def own_dataset_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def phrase(draw: random.Random, length: int = 4) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(2, length)))


def lettered(draw: random.Random, count: int) -> dict[str, Any]:
    return {"text": [phrase(draw) for _ in range(count)], "label": list("ABCD"[:count])}


def hellaswag(draw: random.Random, index: int) -> dict[str, Any]:
    first, second = phrase(draw), phrase(draw)
    return {
        "ind": index,
        "activity_label": "Cutting trees",
        "ctx_a": first,
        "ctx_b": second,
        "ctx": f"{first} {second}",
        "endings": [phrase(draw) for _ in range(4)],
        "source_id": f"made~{index}",
        "split": "val",
        "split_type": "indomain",
        "label": str(draw.randrange(4)),
    }


def item(task: str, draw: random.Random, index: int) -> dict[str, Any]:
    if task == "piqa":
        return {"goal": phrase(draw), "sol1": phrase(draw), "sol2": phrase(draw, 7), "label": draw.randrange(2)}
    if task == "hellaswag":
        return hellaswag(draw, index)
    if task == "winogrande":
        sentence = f"{phrase(draw)} _ {phrase(draw)}."
        return {"sentence": sentence, "option1": "red", "option2": phrase(draw), "answer": draw.choice("12")}
    if task in ("arc_easy", "arc_challenge"):
        count = draw.choice([3, 4])
        key = draw.choice("ABCD"[:count])
        return {"id": f"q{index}", "question": phrase(draw), "choices": lettered(draw, count), "answerKey": key}
    if task == "boolq":
        passage = f"Tree -- {phrase(draw, 8)}."
        return {"question": phrase(draw), "passage": passage, "idx": index, "label": int(draw.random() < 0.6)}
    if task == "openbookqa":
        choices = lettered(draw, 4)
        return {"id": f"q{index}", "question_stem": phrase(draw), "choices": choices, "answerKey": draw.choice("ABCD")}
    assert task == "lambada_openai"
    return {"text": f"{phrase(draw, 8)} {draw.choice(WORDS)}"}


def made(task: str, seed: int = 0, count: int = COUNT) -> list[dict[str, Any]]:
    draw = random.Random(f"{task} {seed}")
    return [item(task, draw, index) for index in range(count)]


def write(path: Path, items: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in items), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for task in STOCK_FILES:
        write(tmp_path / "items" / f"{task}.jsonl", made(task))
    return tmp_path / "items"


def reference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, files: dict[str, dict[str, Path]], **options: Any
) -> dict[str, dict[str, float]]:
    """Return what lm-eval itself finds: its front end, its model class, its task with the data replaced."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    place = next(iter(files.values()))["validation"].parent.parent / "definitions"
    place.mkdir()
    stock = Path(lm_eval.__file__).parent / "tasks"
    for task, splits in files.items():
        definition = {
            "include": str(stock / STOCK_FILES[task]),
            "task": task,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {name: str(path) for name, path in splits.items()}},
            "validation_split": "validation",
            "training_split": "train" if "train" in splits else None,
            "test_split": None,
        }
        (place / f"{task}.yaml").write_text(yaml.safe_dump(definition), encoding="utf-8")
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4),
        tasks=list(files),
        task_manager=TaskManager(include_path=str(place), include_defaults=False),
        bootstrap_iters=0,
        **options,
    )
    return {task: {name.partition(",")[0]: value for name, value in found["results"][task].items()} for task in files}


def test_every_task_scores_what_lm_eval_itself_scores(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, folder: Path
) -> None:
    found = ZeroShot(list(STOCK_FILES), None, 0, str(folder), cache).score(llama, tokenizer, "model")
    expected = reference(llama, tokenizer, {task: {"validation": folder / f"{task}.jsonl"} for task in STOCK_FILES})
    for task in STOCK_FILES:
        metrics = found[task]["metrics"]
        assert metrics["n"] == COUNT
        assert metrics["acc"] == pytest.approx(expected[task]["acc"])
        assert metrics.get("acc_norm") == pytest.approx(expected[task].get("acc_norm"))
        outcomes = [outcome[main_metric(task, metrics)] for outcome in found[task]["outcomes"]]
        assert metrics["stderr"] == pytest.approx(statistics.stdev(outcomes) / COUNT**0.5)
    assert found["lambada_openai"]["metrics"]["perplexity"] == pytest.approx(
        expected["lambada_openai"]["perplexity"], rel=1e-3
    )


def prompts_with(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect every prompt that lm-eval has scored from now on."""
    from evaluation.scorer import SharedContextLM

    prompts: list[str] = []
    original = SharedContextLM.loglikelihood

    def loglikelihood(self: Any, requests: list[Any], *args: Any, **options: Any) -> Any:
        prompts.extend(request.args[0] for request in requests)
        return original(self, requests, *args, **options)

    monkeypatch.setattr(SharedContextLM, "loglikelihood", loglikelihood)
    return prompts


def test_few_shot_examples_come_from_the_training_file_only(
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cache: Cache,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(folder / "arc_easy.train.jsonl", made("arc_easy", seed=1, count=30))
    prompts = prompts_with(monkeypatch)
    found = ZeroShot(["arc_easy"], None, 2, str(folder), cache).score(llama, tokenizer, "model")
    scored = [f"Question: {row['question']}\nAnswer:" for row in made("arc_easy")]
    training = [f"Question: {row['question']}\nAnswer:" for row in made("arc_easy", seed=1, count=30)]
    assert set(scored).isdisjoint(training)
    assert {prompt.rpartition("\n\n")[2] for prompt in prompts} == set(scored)
    for prompt in prompts:
        *examples, _ = prompt.split("\n\n")
        assert len(examples) == 2
        assert all(any(example.startswith(question) for question in training) for example in examples)
    files = {"validation": folder / "arc_easy.jsonl", "train": folder / "arc_easy.train.jsonl"}
    expected = reference(llama, tokenizer, {"arc_easy": files}, num_fewshot=2)
    assert found["arc_easy"]["metrics"]["acc"] == pytest.approx(expected["arc_easy"]["acc"])


def test_few_shot_without_training_items_is_refused(cache: Cache, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluation\.num_fewshot=2: arc_easy .* arc_easy\.train\.jsonl"):
        ZeroShot(["arc_easy"], None, 2, str(folder), cache)


def test_few_shot_on_bundled_items_is_refused(cache: Cache) -> None:
    with pytest.raises(ValueError, match=r"evaluation\.num_fewshot=1: openbookqa has no training items"):
        ZeroShot(["openbookqa"], None, 1, None, cache)


def test_items_limits_the_task_to_its_first_lines(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, folder: Path
) -> None:
    limited = ZeroShot(["piqa"], 5, 0, str(folder), cache).score(llama, tokenizer, "model")["piqa"]
    whole = ZeroShot(["piqa"], None, 0, str(folder), cache).score(llama, tokenizer, "model")["piqa"]
    assert limited["metrics"]["n"] == 5
    assert [outcome["doc_id"] for outcome in limited["outcomes"]] == [0, 1, 2, 3, 4]
    rows = made("piqa")[:5]
    assert [outcome["choices"] for outcome in limited["outcomes"]] == [[f" {r['sol1']}", f" {r['sol2']}"] for r in rows]
    assert [outcome["target"] for outcome in limited["outcomes"]] == [str(row["label"]) for row in rows]
    for few, all_ in zip(limited["outcomes"], whole["outcomes"], strict=False):
        assert few["loglikelihoods"] == pytest.approx(all_["loglikelihoods"], abs=1e-3)


def test_more_items_than_there_are_is_all_of_them_and_said(
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cache: Cache,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = ZeroShot(["piqa"], 1000, 0, str(folder), cache).score(llama, tokenizer, "model")
    assert found["piqa"]["metrics"]["n"] == COUNT
    assert f"evaluation.items=1000: piqa has {COUNT} items; all of them are scored" in caplog.text


def test_as_many_items_as_there_are_is_nothing_to_say(
    cache: Cache, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ZeroShot(["piqa"], COUNT, 0, str(folder), cache)
    assert caplog.text == ""


def test_the_items_that_lm_eval_fetches_are_counted_too(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("evaluation.tasks._load_stock_task", lambda *_: SimpleNamespace(eval_docs=[{}] * 3))
    ZeroShot(["sciq"], 3, 0, None, cache)
    assert caplog.text == ""
    ZeroShot(["sciq"], 4, 0, None, cache)
    assert "evaluation.items=4: sciq has 3 items; all of them are scored" in caplog.text
    monkeypatch.setattr("evaluation.tasks._load_stock_task", lambda *_: SimpleNamespace(eval_docs=[]))
    with pytest.raises(
        ValueError, match=r"evaluation\.tasks: sciq has no items: the split that lm-eval scores is empty"
    ):
        ZeroShot(["sciq"], None, 0, None, cache)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "piqa has no items: .*piqa.jsonl is empty"),
        ('{"goal": "a"}\n\n{"goal": "b"\n', "piqa.jsonl, line 3: not a JSON object"),
        ("[1, 2]\n", "piqa.jsonl, line 1: not a JSON object"),
    ],
)
def test_a_file_without_items_or_with_a_damaged_line_is_refused(
    cache: Cache, folder: Path, text: str, message: str
) -> None:
    (folder / "piqa.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ZeroShot(["piqa"], None, 0, str(folder), cache)


def test_more_examples_in_the_prompt_than_there_are_is_refused(cache: Cache, folder: Path) -> None:
    write(folder / "arc_easy.train.jsonl", made("arc_easy", seed=1, count=3))
    with pytest.raises(ValueError, match=r"num_fewshot=4: arc_easy\.train\.jsonl has 3 examples"):
        ZeroShot(["arc_easy"], None, 4, str(folder), cache)


def test_a_missing_file_is_named_with_what_there_is(cache: Cache, folder: Path) -> None:
    (folder / "boolq.jsonl").unlink()
    with pytest.raises(ValueError, match=r"evaluation\.data_dir=.*: no boolq\.jsonl there, only .*piqa"):
        ZeroShot(["piqa", "boolq"], None, 0, str(folder), cache)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    original = evaluation.zeroshot.run_task

    def run_task(task: Any, name: str, *rest: Any) -> dict[str, Any]:
        calls.append(name)
        return original(task, name, *rest)

    monkeypatch.setattr(evaluation.zeroshot, "run_task", run_task)
    return calls


def test_scores_are_read_from_the_cache_for_the_same_question_only(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, folder: Path, counted: list[str]
) -> None:
    first = ZeroShot(["piqa"], None, 0, str(folder), cache).score(llama, tokenizer, "one")
    again = ZeroShot(["piqa"], None, 0, str(folder), cache).score(llama, tokenizer, "one")
    assert first == again
    assert counted == ["piqa"]
    other = ZeroShot(["piqa"], None, 0, str(folder), cache).score(build("llama_mha"), tokenizer, "other")
    assert counted == ["piqa"] * 2
    assert other["piqa"]["outcomes"] != first["piqa"]["outcomes"]
    ZeroShot(["piqa"], 4, 0, str(folder), cache).score(llama, tokenizer, "one")
    assert counted == ["piqa"] * 3
    write(folder / "piqa.jsonl", made("piqa", seed=2))
    changed = ZeroShot(["piqa"], None, 0, str(folder), cache).score(llama, tokenizer, "one")
    assert counted == ["piqa"] * 4
    assert changed["piqa"]["outcomes"] != first["piqa"]["outcomes"]


def test_a_killed_scoring_goes_on_with_the_next_task(
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cache: Cache,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = ["piqa", "boolq", "winogrande", "openbookqa", "arc_easy"]
    score_task, begun = evaluation.zeroshot.run_task, []

    def killed_in_the_third(task: Any, name: str, *rest: Any) -> dict[str, Any]:
        begun.append(name)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return score_task(task, name, *rest)

    monkeypatch.setattr(evaluation.zeroshot, "run_task", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        ZeroShot(tasks, 3, 0, str(folder), cache).score(llama, tokenizer, "one")
    found = ZeroShot(tasks, 3, 0, str(folder), cache).score(llama, tokenizer, "one")
    assert begun == [*tasks[:3], *tasks[2:]]
    assert found == ZeroShot(tasks, 3, 0, str(folder), Cache(folder / "other")).score(llama, tokenizer, "one")


def test_items_scored_alone_are_kept_apart_and_agree_in_float32(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, folder: Path, counted: list[str]
) -> None:
    tasks = ZeroShot(["piqa", "lambada_openai"], None, 0, str(folder), cache)
    scores = tasks.score(llama, tokenizer, "one")
    alone = tasks.score(llama, tokenizer, "one", alone=5)
    assert tasks.score(llama, tokenizer, "one", alone=5) == alone
    assert ZeroShot(["piqa"], 5, 0, str(folder), cache).score(llama, tokenizer, "one")["piqa"]["metrics"]["n"] == 5
    assert counted == ["piqa", "lambada_openai"] * 2 + ["piqa"]
    found = noise_metrics(scores, alone)
    assert all(found[f"zeroshot/{task}/noise_floor"] == 0 for task in tasks.data)
    assert all(found[f"zeroshot/{task}/noise_nats"] < 1e-3 for task in tasks.data)


def test_models_that_are_scored_later_begin_with_the_batches_that_fitted(
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cache: Cache,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from evaluation.scorer import SharedContextLM

    run = SharedContextLM._states

    def small(self: Any, rows: list[Any]) -> Any:
        if len(rows) * max(len(row.tokens) for row in rows) > 300:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return run(self, rows)

    wanted = ZeroShot(["piqa"], None, 0, str(folder), Cache(folder / "other")).score(llama, tokenizer, "one")
    monkeypatch.setattr(SharedContextLM, "_states", small)
    tasks = ZeroShot(["piqa", "winogrande"], None, 0, str(folder), cache)
    found = tasks.score(llama, tokenizer, "one")
    assert tasks.budget.size <= 300
    tasks.score(build("llama_mha"), tokenizer, "other")
    assert caplog.text.count("out of memory") == 1
    for first, second in zip(found["piqa"]["outcomes"], wanted["piqa"]["outcomes"], strict=True):
        assert first["loglikelihoods"] == pytest.approx(second["loglikelihoods"], abs=1e-3)


def test_a_task_that_is_nowhere_is_an_error_with_advice(
    cache: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    index = TaskManager()  # takes some 15 s: made once here for all three questions
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda: index)
    with pytest.raises(ValueError, match="lm-eval knows no task 'hellaswagg'; near names: .*'hellaswag'"):
        ZeroShot(["hellaswagg"], None, 0, None, cache)
    with pytest.raises(ValueError, match=r"items of sciq are not on this machine.*sciq\.jsonl.*evaluation\.data_dir"):
        ZeroShot(["sciq"], None, 0, None, cache)
    write(folder / "hellaswagg.jsonl", made("hellaswag"))
    with pytest.raises(ValueError, match="lm-eval knows no task 'hellaswagg'"):
        ZeroShot(["hellaswagg"], None, 0, str(folder), cache)._task("hellaswagg")


def outcomes(hits: list[float], choices: list[list[str]] | None = None, target: str = "0") -> list[dict[str, Any]]:
    return [
        {"choices": choices[index] if choices else [f"a{index}", f"b{index}"], "target": target, "acc": hit}
        for index, hit in enumerate(hits)
    ]


def test_metrics_are_mean_and_standard_error_of_the_items() -> None:
    hits = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    found = task_metrics("piqa", outcomes(hits))
    assert found["acc"] == pytest.approx(statistics.mean(hits))
    assert found["stderr"] == pytest.approx(statistics.stdev(hits) / 7**0.5)
    assert found["n"] == 7


def test_the_standard_error_is_that_of_the_main_metric() -> None:
    rows = [
        {"choices": ["x", f"y{index}"], "target": "0", "acc": 1.0, "acc_norm": float(index % 2)} for index in range(6)
    ]
    assert task_metrics("hellaswag", rows)["stderr"] == pytest.approx(statistics.stdev([0, 1, 0, 1, 0, 1]) / 6**0.5)
    assert task_metrics("piqa", rows)["stderr"] == 0


def test_chance_of_constant_choices_is_the_share_of_the_commonest_answer() -> None:
    rows = [{"choices": [" no", " yes"], "target": target} for target in ("1", "1", "0", "1", "0")]
    assert chance_level(rows) == pytest.approx(0.6)


def test_chance_of_varying_choices_is_one_over_their_number() -> None:
    rows = [{"choices": [f"{index} {choice}" for choice in range(count)]} for index, count in enumerate((4, 4, 3, 5))]
    assert chance_level([row | {"target": "0"} for row in rows]) == pytest.approx((1 / 4 + 1 / 4 + 1 / 3 + 1 / 5) / 4)


def test_chance_of_a_single_item_is_not_certainty() -> None:
    assert chance_level([{"choices": ["red", "blue", "green", "grey"], "target": "2"}]) < 1


def test_chance_of_free_text_is_zero() -> None:
    assert chance_level([{"choices": [" stone"], "target": "stone"}, {"choices": [" stone"], "target": "stone"}]) == 0


def test_made_boolq_has_the_chance_of_its_majority(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, folder: Path
) -> None:
    found = ZeroShot(["boolq", "openbookqa"], None, 0, str(folder), cache).score(llama, tokenizer, "model")
    yes = sum(row["label"] for row in made("boolq"))
    assert found["boolq"]["metrics"]["chance"] == pytest.approx(max(yes, COUNT - yes) / COUNT)
    assert found["openbookqa"]["metrics"]["chance"] == pytest.approx(1 / 4)


def score(acc: float, acc_norm: float | None = None, chance: float = 0.25, stderr: float = 0.05) -> dict[str, Any]:
    metrics = {"acc": acc, "stderr": stderr, "n": 100, "chance": chance}
    return {"metrics": metrics if acc_norm is None else metrics | {"acc_norm": acc_norm}}


SCORES = {
    "boolq": score(0.60, chance=0.62, stderr=0.04),
    "piqa": score(0.70, 0.10, chance=0.5),
    "hellaswag": score(0.10, 0.45),
    "winogrande": score(0.52, chance=0.5),
    "arc_easy": score(0.50, 0.10),
    "arc_challenge": score(0.10, 0.28),
    "openbookqa": score(0.10, 0.30),
    "lambada_openai": score(0.40, chance=0.0, stderr=0.03),
}


def test_the_mean_takes_acc_norm_for_three_tasks_and_leaves_lambada_out() -> None:
    found = zeroshot_metrics(SCORES, SCORES)
    assert found["zeroshot/mean"] == pytest.approx((0.60 + 0.70 + 0.45 + 0.52 + 0.50 + 0.28 + 0.30) / 7)
    assert found["zeroshot/mean_tasks"] == 7
    assert found["zeroshot/mean_stderr"] == pytest.approx((6 * 0.05**2 + 0.04**2) ** 0.5 / 7)


def test_the_mean_above_chance_holds_the_tasks_on_which_the_dense_model_beats_chance() -> None:
    pruned = {task: score(0.2, 0.2, chance=row["metrics"]["chance"]) for task, row in SCORES.items()}
    pruned["boolq"] = score(0.99, chance=0.62)
    found = zeroshot_metrics(pruned, SCORES)
    assert found["zeroshot/mean_above_chance"] == pytest.approx(0.2)  # piqa, hellaswag, arc_easy, lambada_openai
    assert found["zeroshot/mean_above_chance_tasks"] == 4
    dense = zeroshot_metrics(SCORES, SCORES)
    assert dense["zeroshot/mean_above_chance"] == pytest.approx((0.70 + 0.45 + 0.50 + 0.40) / 4)


def test_a_mean_of_no_task_is_left_out() -> None:
    found = zeroshot_metrics({"boolq": SCORES["boolq"]}, {"boolq": SCORES["boolq"]})
    assert "zeroshot/mean_above_chance" not in found
    assert found["zeroshot/mean"] == pytest.approx(0.60)
    assert zeroshot_metrics({}, {}) == {}


@pytest.mark.parametrize(("value", "beats"), [(0.24, False), (0.25, False), (0.34, False), (0.36, True), (0.9, True)])
def test_chance_is_beaten_by_two_standard_errors(value: float, beats: bool) -> None:
    assert beats_chance("piqa", score(value)["metrics"]) is beats


def test_chance_itself_is_not_beaten_by_a_model_that_always_misses() -> None:
    assert not beats_chance("lambada_openai", score(0.0, chance=0.0, stderr=0.0)["metrics"])
