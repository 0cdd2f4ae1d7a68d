from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.compare import compare, differing, main, metric_names, text_mark
from evaluation.result import RunResult, finished_runs
from pruning.files import write_json
from tests.evaluation.studies import make_result

TASKS = ("boolq", "piqa", "arc_challenge", "lambada_openai")


def make_run(folder: Path, ratio: float, items: int = 40, windows: str = "0abc") -> Path:
    """Write a finished run whose items and windows follow from its ratio, and return its folder."""
    made = make_result("study", ratio, "taylor", 0)
    run = folder / f"{made.name}-{items}-{windows}"
    draw = random.Random(f"{ratio}")
    for task in TASKS:
        for stage in ("dense", "pruned", "recovered"):
            keep(
                run / "zeroshot" / f"{task}.json", stage, scores(items, draw if stage != "dense" else random.Random(0))
            )
    for stage in ("dense", "pruned"):
        sums = [100 + (ratio if stage != "dense" else 0) * 10 + index for index in range(6)]
        text = {"blocks": windows, "loss_sums": sums, "correct": [1] * 6, "tokens_per_block": 20}
        keep(run / "texts" / "passages@128.json", stage, text)
    made.write(run / "result.json")
    return run


def keep(file: Path, stage: str, found: dict[str, Any]) -> None:
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    write_json(file, known | {stage: found})


def scores(items: int, draw: random.Random) -> dict[str, Any]:
    right = [float(draw.random() < 0.6) for _ in range(items)]
    outcomes = [
        {"doc_id": index, "target": "0", "choices": [" a", " b"], "acc": value, "acc_norm": value}
        for index, value in enumerate(right)
    ]
    return {"metrics": {"acc": sum(right) / items, "acc_norm": 0.5, "stderr": 0.1, "n": items}, "outcomes": outcomes}


def runs(*folders: Path) -> list[tuple[Path, RunResult]]:
    return finished_runs(list(folders))


def test_only_what_differs_is_named() -> None:
    first, second = {"a": 1, "b": 0.1 + 0.2, "c": [1], "d": None}, {"a": 1, "b": 0.3, "c": [2], "e": 5}
    assert differing(first, second) == {"c": ([1], [2]), "e": (None, 5)}


def test_a_comparison_has_configuration_stages_and_the_metrics_without_pairs(tmp_path: Path) -> None:
    one = compare(*runs(make_run(tmp_path, 0.1), make_run(tmp_path, 0.5)))
    assert one.configuration == {"pruning.ratio": (0.1, 0.5)}
    assert list(one.stages) == ["dense", "pruned", "recovered"]
    names = ["boolq (acc)", "piqa (acc)", "arc_challenge (acc_norm)", "lambada_openai (acc)", "mean of seven"]
    assert list(one.stages["pruned"]) == [*names, "loss, passages@128"]
    assert one.stages["pruned"]["loss, passages@128"].difference == pytest.approx(0.4 * 10 / 20)
    assert all(difference.difference == 0 for difference in one.stages["dense"].values())
    assert "pruned/ratio_reached" in one.metrics
    assert "pruned/ppl/wikipedia@128" in one.metrics  # no windows of it were kept
    assert "recovered/ppl/passages@128" in one.metrics  # nor of this one at that stage
    assert "recovered/zeroshot/mean_above_chance" in one.metrics
    for paired in ("pruned/ppl/passages@128", "recovered/zeroshot/piqa/acc", "recovered/zeroshot/mean"):
        assert paired not in one.metrics


@pytest.mark.parametrize(
    ("label", "names"),
    [
        ("piqa (acc)", ["dense/zeroshot/piqa/"]),
        ("mean of seven", ["dense/zeroshot/mean", "dense/zeroshot/mean_stderr", "dense/zeroshot/mean_tasks"]),
        ("loss, wikipedia@128", ["dense/ppl/wikipedia@128"]),
        ("loss, probe", ["dense/probe/loss"]),
        ("token accuracy, probe", ["dense/probe/tok_acc"]),
    ],
)
def test_a_row_stands_for_metrics(label: str, names: list[str]) -> None:
    assert metric_names("dense", label) == names


def test_what_is_printed_fits_100_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [make_run(tmp_path, 0.1), make_run(tmp_path, 0.5, items=25)]
    main([str(folder) for folder in folders])
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 100 for line in lines if str(tmp_path) not in line)
    text = "\n".join(lines)
    assert re.search(r"pruning.ratio +0.1 +0.5 +\+0.4", text)
    assert re.search(r"dense: the same on all items that both have", text)
    assert re.search(r"pruned +A +B +B - A +95% interval +p +items", text)
    assert re.search(r"mean of seven +0\.\d{4} +0\.\d{4} +[+-]0\.\d{4} +[+-]0\.\d{4} \.\. [+-]0\.\d{4} +75", text)
    assert "lambada_openai (acc): 25 items are shared; 15 more are only in A, 0 only in B" in " ".join(text.split())
    assert re.search(r"pruned/ratio_reached +0.1007 +0.5007 +\+0.4", text)


IN_DOMAIN = {"text/passages/overlap": 0.0, "text/passages/in_domain": 1.0, "text/passages/contaminated": 0.0}


@pytest.mark.parametrize(
    ("known", "shown"),
    [("", ""), ("AB", " (in domain)"), ("A", " (in domain in A)"), ("B", " (in domain in B)")],
)
def test_texts_that_the_models_know_are_marked(
    known: str, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [make_run(tmp_path, 0.1), make_run(tmp_path, 0.5)]
    for name, (path, made) in zip("AB", runs(*folders), strict=True):
        marked = made.metrics | IN_DOMAIN if name in known else made.metrics
        replace(made, metrics=marked).write(path / "result.json")
    assert compare(*runs(*folders)).marks["loss, passages@128"] == shown
    main([str(folder) for folder in folders])
    lines = capsys.readouterr().out.splitlines()
    (row,) = (line for line in lines if line.startswith(" loss, passages@128 "))
    assert row.startswith(f" loss, passages@128{shown[:11]}")  # a longer one goes on in the next line
    assert ("(" in row) is bool(known)
    assert any(line.startswith("in domain: other documents of the same corpus") for line in lines) is bool(known)
    assert all(len(line) <= 100 for line in lines if str(tmp_path) not in line)


def test_the_probe_has_its_own_mark_and_tasks_have_none() -> None:
    metrics = {"probe/contaminated": 1.0, "text/passages/in_domain": 1.0}
    assert text_mark("token accuracy, probe", metrics, metrics) == " (contaminated)"
    assert text_mark("loss, passages@128", metrics, {}) == " (in domain in A)"
    assert text_mark("loss, other@128", metrics, metrics) == ""
    assert text_mark("piqa (acc)", metrics, metrics) == ""


def test_windows_of_another_text_are_not_paired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(make_run(tmp_path, 0.1)), str(make_run(tmp_path, 0.2, windows="other"))])
    text = " ".join(capsys.readouterr().out.split())
    assert "loss, passages@128: 0 items are shared; 6 more are only in A, 6 only in B" in text
    assert re.search(r"loss, passages@128 - - - - \.\. - 0 ", text)


def test_more_runs_are_compared_with_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [make_run(tmp_path, ratio) for ratio in (0.1, 0.2, 0.5)]
    main([*map(str, folders), "--json", str(tmp_path / "out" / "comparison.json")])
    out = capsys.readouterr().out
    assert out.count(f"A  {folders[0]}") == 2
    assert all(f"B  {folder}" in out for folder in folders[1:])
    found = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert [one["second"] for one in found] == [str(folder) for folder in folders[1:]]
    assert found[1]["configuration"] == {"pruning.ratio": [0.1, 0.5]}
    assert found[1]["stages"]["pruned"]["piqa (acc)"]["shared"] == 40


def test_runs_without_any_item_still_compare_their_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for ratio in (0.1, 0.2):
        make_result("study", ratio, "taylor", 0).write(tmp_path / f"{ratio}" / "result.json")
    main([str(tmp_path)])
    out = capsys.readouterr().out
    assert "Neither a task nor a text was measured in both runs" in out
    assert "recovered/zeroshot/piqa/acc" in out


def test_a_run_compared_with_itself_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(make_run(tmp_path, 0.1))
    main([folder, folder])
    out = capsys.readouterr().out
    assert "configuration: the same" in out
    assert "other metrics: the same" in out
    assert out.count("the same on all items") == 3


def test_one_run_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a single finished run; name another"):
        main([str(make_run(tmp_path, 0.1))])
