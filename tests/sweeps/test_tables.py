from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from evaluation.dashboard.runs import read_run
from sweeps.tables import Row, counts, errors, notes, plan_table, results_table
from tests.evaluation.studies import make_result, make_study, make_unfinished


def text(table: Table) -> str:
    file = io.StringIO()
    Console(file=file, width=100).print(table)
    return file.getvalue()


def rows(study: Path) -> list[Row]:
    make_study(study, [0.1, 0.2], ["taylor"], [0])
    failed = make_unfinished(
        study, make_result("s", 0.5, "l2", 0), "failed", error="ValueError: it\ncannot be " + "so" * 500
    )
    pending = make_unfinished(study, make_result("s", 0.5, "l2", 1), None)
    paths = [*sorted(study.glob("*taylor*")), failed, pending]
    return [Row(f"importance=x ratio=0.{n}", read_run(path), 60.0) for n, path in enumerate(paths)]


def test_the_results_show_every_run_with_its_figures_in_100_columns(tmp_path: Path) -> None:
    found = rows(tmp_path / "s")
    shown = text(results_table(found))
    assert all(len(line) <= 100 for line in shown.splitlines())
    metrics = found[0].run.metrics
    (line,) = (line for line in shown.splitlines() if "ratio=0.0" in line)
    assert line.startswith("done")
    assert f"{metrics['pruned/zeroshot/mean']:.3f} > {metrics['recovered/zeroshot/mean']:.3f}" in line
    assert f"{metrics['pruned/ppl/passages@128']:.1f} > {metrics['recovered/ppl/passages@128']:.1f}" in line
    assert f"{metrics['pruned/ratio_reached']:.1%}" in line
    assert "2 min 28 s" in line  # 12.3 + 60 + 30.1 + 45.2 seconds
    (line,) = (line for line in shown.splitlines() if "ratio=0.2" in line)
    assert line.split() == ["failed", "importance=x", "ratio=0.2"]


def test_texts_that_a_run_knows_are_marked_in_the_heading(tmp_path: Path) -> None:
    found = rows(tmp_path / "s")
    assert notes(found) == []

    def marked(**marks: float) -> list[Row]:
        metrics = found[1].run.metrics | {name.replace("__", "/"): value for name, value in marks.items()}
        return [found[0], replace(found[1], run=replace(found[1].run, metrics=metrics))]

    known = marked(text__passages__in_domain=1.0, text__wikipedia__contaminated=1.0, probe__contaminated=1.0)
    lines = text(results_table(known)).splitlines()
    assert lines[0].split() == ["perplexity"]
    assert lines[1].split() == ["state", "run", "removed", "zero-shot", "mean", "(in", "domain)", "time"]
    assert notes(known) == ["in domain: other documents of the same corpus calibrate and recover the model"]
    known = marked(text__passages__in_domain=1.0, text__passages__contaminated=1.0)
    assert " (contaminated) " in text(results_table(known)).splitlines()[1]
    assert [note.partition(":")[0] for note in notes(known)] == ["contaminated"]


def test_the_probe_is_marked_where_it_is_shown(tmp_path: Path) -> None:
    [row, *_] = rows(tmp_path / "s")
    bare = {name: value for name, value in row.run.metrics.items() if "zeroshot" not in name and "/ppl/" not in name}
    shown = replace(row, run=replace(row.run, metrics=bare | {"probe/in_domain": 1.0, "text/passages/in_domain": 1.0}))
    assert [" ".join(line.split()) for line in text(results_table([shown])).splitlines()[:2]] == [
        "token accuracy",
        "state run removed (in domain) time",
    ]
    assert "perplexity" not in text(results_table([shown]))


def test_figures_that_no_run_has_take_no_column(tmp_path: Path) -> None:
    found = rows(tmp_path / "s")
    bare = {name: value for name, value in found[0].run.metrics.items() if "zeroshot" not in name}
    shown = text(results_table([replace(found[0], run=replace(found[0].run, metrics=bare))]))
    assert "zero-shot" not in shown
    assert "token accuracy" in shown


def test_a_long_label_is_folded(tmp_path: Path) -> None:
    found = [
        replace(row, label="pruning.structures=[" + ",".join(["mlp_channel"] * 20) + "]") for row in rows(tmp_path)
    ]
    shown = text(results_table(found))
    assert all(len(line) <= 100 for line in shown.splitlines())
    assert "".join(shown.split()).count("mlp_channel") >= 40


def test_the_plan_shows_states_and_times(tmp_path: Path) -> None:
    found = rows(tmp_path / "s")
    lines = text(plan_table([*found[:3], replace(found[3], seconds=None)])).splitlines()
    assert [line.split()[0] for line in lines] == ["state", "done", "done", "failed", "pending"]
    assert lines[1].endswith("1 min 00 s")
    assert lines[3].endswith("about 1 min 00 s")
    assert lines[4].endswith("?")


def test_counts_and_errors_say_what_happened_and_where_to_look(tmp_path: Path) -> None:
    found = rows(tmp_path / "s")
    assert counts(found) == "4 runs: 2 done, 1 failed, 1 pending"
    assert counts(found[:1]) == "1 run: 1 done"
    why, where = errors(found)
    assert why.startswith("failed: importance=x ratio=0.2: ValueError: it cannot be sososo")
    assert why.endswith(" ...")
    assert len(why) < 400
    assert where.strip() == f"{found[2].run.folder}/run.log"
