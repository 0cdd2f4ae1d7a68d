"""The dashboard in headless Chromium when runs are odd: hostile names, missing figures, nothing finished, nothing at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.dashboard import write_dashboard
from evaluation.result import RunResult
from tests.evaluation.browser import Browser
from tests.evaluation.studies import make_result, make_study, make_unfinished
from tests.evaluation.test_dashboard import HOSTILE


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_what_hostile_runs_say_is_only_text(browser: Browser, tmp_path: Path) -> None:
    study = tmp_path / "<img src=x onerror=hacked=1>"
    for seed in (0, 1):
        result = make_result(HOSTILE, 0.2, "taylor", seed)
        choices = result.choices | {"importance": HOSTILE, "model": f"{HOSTILE}{seed}"}
        changed = replace(result, name=HOSTILE, choices=choices, config=result.config | {HOSTILE: HOSTILE})
        metrics = changed.metrics | {f"stability/{HOSTILE}": 1.0, f"dense/zeroshot/{HOSTILE}/acc": 0.5}
        metrics |= {f"recovered/ppl/{HOSTILE}@1": 3.0}
        replace(changed, metrics=metrics).write(study / str(seed) / "result.json")
    failed = make_unfinished(study, replace(result, name="failed"), "failed", error=HOSTILE, stage=HOSTILE)
    (failed / "run.log").write_text(HOSTILE)
    browser.open(write_dashboard(study))
    for index in range(3):
        browser.run(f"document.querySelector('dialog').close(); openDetails(DATA.runs[{index}])")
    assert browser.run("document.querySelector('dialog').textContent").count(HOSTILE) >= 2
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run("typeof hacked") == "undefined"
    assert browser.run("document.querySelectorAll('script').length") == 3
    assert browser.errors == []


def odd_results() -> list[RunResult]:
    """Runs that have little in common: no metrics, nulls, other tasks, ratio 0, no widths, several models."""
    plain = make_result("odd", 0.2, "taylor", 0)
    other = make_result("odd", 0.5, "l2", 0, schedule="cubic", model="other")
    tasks = {name: value for name, value in other.metrics.items() if "/zeroshot/piqa" in name or "/probe/" in name}
    return [
        plain,
        make_result("odd", 0.0, "l2", 1),
        replace(plain, name="none", metrics={}, events=[], widths=[], timings={}, environment={}),
        replace(plain, name="null", metrics=dict.fromkeys(plain.metrics, None), events=[{"event/index": 0}]),  # type: ignore[arg-type]
        replace(other, name="tasks", metrics=tasks, choices={}),
        replace(other, name="short", widths=other.widths[:3]),
    ]


@pytest.mark.parametrize("kind", ["empty", "failed", "one", "odd", "states"])
def test_any_folder_gives_a_sensible_page(kind: str, browser: Browser, tmp_path: Path) -> None:
    study = tmp_path / kind
    study.mkdir()
    if kind == "one":
        make_study(study, [0.2], ["taylor"], [0])
    for result in odd_results() if kind == "odd" else []:
        result.write(study / result.name / "result.json")
    if kind in ("failed", "states"):
        make_unfinished(study, make_result(kind, 0.1, "l2", 0), "failed", error="ValueError: no", stage="load")
    if kind == "states":
        make_unfinished(study, make_result(kind, 0.1, "l2", 1), "running", stage="dense")
        make_unfinished(study, make_result(kind, 0.1, "l2", 2), None)
        (make_unfinished(study, make_result(kind, 0.1, "l2", 3), "done") / "result.json").write_text('{"schema": 0}')
    browser.open(write_dashboard(study))
    assert browser.errors == []
    text = browser.run("document.body.innerText")
    assert "NaN" not in text
    assert "undefined" not in text
    expected = {
        "empty": "No runs yet",
        "failed": "No run has finished yet",
        "one": "1 run: 1 done",
        "odd": "6 runs: 6 done",
        "states": "4 runs: 1 failed, 1 pending, 1 stopped, 1 unreadable",
    }
    assert expected[kind] in text
    assert browser.run("document.querySelectorAll('.main-svg').length > 0") is (kind in ("one", "odd"))
    if kind == "states":
        assert "has schema 0" in text
        assert 'in stage "dense"' in text


def test_a_run_without_a_configuration_brings_no_filter_and_no_column(browser: Browser, tmp_path: Path) -> None:
    make_study(tmp_path / "mine", [0.1, 0.2], ["taylor"], [0])
    ended = make_unfinished(tmp_path / "mine", make_result("mine", 0.5, "l2", 1), "running", stage="load")
    for path in (ended / ".hydra").iterdir():
        path.unlink()
    browser.open(write_dashboard(tmp_path / "mine"))
    assert browser.errors == []
    assert browser.run("[...document.querySelectorAll('details.filter')].map(one => one.dataset.facet)") == [
        "ratio",
        "state",
    ]
    assert "model tiny · estimator taylor" in browser.run("document.getElementById('common').textContent")
    assert browser.run("document.getElementById('count').textContent") == "3 of 3 runs"
