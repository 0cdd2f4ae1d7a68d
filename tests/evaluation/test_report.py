"""The tables: rows, and the marks of texts that the model was not kept away from."""

from __future__ import annotations

import dataclasses

import pytest

from evaluation.report import model_card, print_report
from evaluation.report_rows import fact_rows, perplexity_label, report_rows
from evaluation.result import RunResult

METRICS = {
    **{f"{stage}/ppl/books@128": value for stage, value in (("dense", 20.0), ("pruned", 40.0), ("recovered", 30.0))},
    **{f"{stage}/ppl/a@b@64": value for stage, value in (("dense", 2.0), ("pruned", 4.0), ("recovered", 3.0))},
    **{f"{stage}/probe/tok_acc": 0.25 for stage in ("dense", "pruned", "recovered", "control")},
    "pruned/ratio_asked": 0.2,
    "pruned/ratio_of_total": 0.2,
}


def marked(text: str, in_domain: float, contaminated: float) -> dict[str, float]:
    return {f"{text}/overlap": 0.5, f"{text}/in_domain": in_domain, f"{text}/contaminated": contaminated}


def result(metrics: dict[str, float]) -> RunResult:
    chosen = {"importance": "l2", "schedule": "one_shot", "recovery": "none"}
    return RunResult("k", "name", "study", {"model": {"name": "m"}}, chosen, metrics, [], [], {}, {})


def labels(metrics: dict[str, float]) -> list[str]:
    return [row.label for part in report_rows(metrics) for row in part]


def test_texts_of_other_corpora_have_no_mark() -> None:
    plain = ["perplexity, a@b@64", "perplexity, books@128", "next-token accuracy"]
    assert labels(METRICS) == plain
    assert labels(METRICS | marked("text/books", 0, 0) | marked("probe", 0, 0)) == plain


@pytest.mark.parametrize(("contaminated", "words"), [(0.0, "in domain"), (1.0, "contaminated")])
def test_every_table_marks_a_text_that_the_model_was_not_kept_away_from(
    contaminated: float, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = METRICS | marked("text/books", 1, contaminated) | marked("probe", 1, contaminated)
    assert labels(metrics) == [
        "perplexity, a@b@64",
        f"perplexity, books@128 ({words})",
        f"next-token accuracy ({words})",
    ]
    assert fact_rows(metrics)[0][:2] == ("text of the probes", words)
    print_report(result(metrics))
    printed = capsys.readouterr().out
    for table in (printed, model_card(result(metrics))):
        assert f"perplexity, books@128 ({words})" in table
        assert "perplexity, a@b@64 (" not in table
        assert f"next-token accuracy ({words})" in table
        assert table.count(f"{words}: ") == 1
    assert not any(word in "".join(map(str, fact_rows(METRICS))) for word in (words, "text of the probes"))


def test_a_mark_belongs_to_one_text_at_all_its_windows() -> None:
    metrics = marked("text/a@b", 1, 0)
    assert perplexity_label(metrics, "ppl/a@b@64") == "perplexity, a@b@64 (in domain)"
    assert perplexity_label(metrics, "ppl/a@b@128") == "perplexity, a@b@128 (in domain)"
    assert perplexity_label(metrics, "ppl/a@64") == "perplexity, a@64"


def test_the_printed_table_fits_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    stages = ("dense", "pruned", "recovered", "control")
    names = ("acc", "acc_norm", "stderr")
    scores = {f"{stage}/zeroshot/hellaswag/{name}": 0.123 for stage in stages for name in names}
    metrics = METRICS | scores | marked("text/books", 1, 0) | marked("probe", 1, 0)
    print_report(dataclasses.replace(result(metrics), name="n" * 60))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any("perplexity, books@128 (in domain)" in line for line in lines)


def test_flatness_stands_beside_its_stages() -> None:
    metrics = METRICS | {"flatness/dense/trC_relative": 2.0, "flatness/recovered/trC_relative": 1234.5}
    (row,) = report_rows(metrics)[-1]
    assert row.label == "gradient second moment, relative"
    assert row.cells == {"dense": "2", "recovered": "1.23e+03"}
    assert report_rows(METRICS)[-1] == []
