"""The dashboard without a browser: reading run folders, telling runs apart, and the file that is written."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from evaluation.dashboard import write_dashboard
from evaluation.dashboard.__main__ import main
from evaluation.dashboard.comparison import arms, facets, measures, tasks
from evaluation.dashboard.page import HERE, SCRIPTS, describe, embedded, page
from evaluation.dashboard.runs import RunRecord, find_runs, flat, read_run
from tests.evaluation.studies import make_result, make_study, make_unfinished, small_study, write_status

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1><!-- {{data}} \u2028 & 'quoted'"


def record(**changes: Any) -> RunRecord:
    """A finished run that differs from others only in what is given."""
    made = RunRecord(
        folder="f",
        name="n",
        study="s",
        state="done",
        choices={"model": "tiny", "importance": "taylor", "pruning": "block_wise"},
        config={"seed": 0, "pruning.ratio": 0.1, "importance.order": "first", "study": "s"},
    )
    config = made.config | changes.pop("config", {})
    choices = made.choices | changes.pop("choices", {})
    return replace(made, config=config, choices=choices, **changes)


def shown(html: str) -> dict[str, Any]:
    """The data in a page."""
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def test_runs_are_found_in_a_study_in_all_studies_and_by_themselves_once(tmp_path: Path) -> None:
    for study in ("a", "b"):
        make_study(tmp_path / study, [0.1], ["taylor", "l2"], [0])
    (tmp_path / ".cache" / "x").mkdir(parents=True)
    write_status(tmp_path / ".cache" / "x", "done")
    (tmp_path / "a" / "notes").mkdir()
    one = next((tmp_path / "a").glob("*taylor*"))
    assert find_runs([one]) == [one]
    assert {path.parent.name for path in find_runs([tmp_path / "a"])} == {"a"}
    assert len(find_runs([tmp_path])) == 4
    assert len(find_runs([tmp_path / "a", one, tmp_path])) == 4
    assert find_runs([tmp_path / "a" / "notes"]) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing: there is no such folder; name a study"):
        find_runs([tmp_path / "nothing"])


def test_a_finished_run_shows_its_result(tmp_path: Path) -> None:
    [result] = make_study(tmp_path / "s", [0.2], ["taylor"], [3])
    found = read_run(tmp_path / "s" / result.name)
    assert (found.state, found.name, found.study, found.log) == ("done", result.name, "s", "")
    assert found.metrics == result.metrics
    assert found.events == result.events
    assert found.config == {"model.name": "tiny", "importance": {}, "pruning.ratio": 0.2, "seed": 3, "study": "s"}


def test_a_failed_run_shows_its_error_its_options_and_the_end_of_its_log(tmp_path: Path) -> None:
    run = make_unfinished(tmp_path, make_result("s", 0.5, "l2", 1), "failed", stage="load", error="ValueError: no")
    (run / "run.log").write_text("".join(f"line {number}\n" for number in range(5000)))
    found = read_run(run)
    assert (found.state, found.stage, found.error) == ("failed", "load", "ValueError: no")
    assert found.choices["importance"] == "l2"
    assert "hydra/launcher" not in found.choices
    assert (found.config["pruning.ratio"], found.config["seed"]) == (0.5, 1)
    lines = found.log.splitlines()
    assert lines[-1] == "line 4999"
    assert len(found.log) <= 6000
    assert re.fullmatch(r"line \d{4}", lines[0])


def test_a_run_is_running_only_while_a_process_holds_it(tmp_path: Path) -> None:
    run = make_unfinished(tmp_path, make_result("s", 0.5, "l2", 1), "running", stage="dense")
    assert read_run(run).state == "stopped"
    with FileLock(run / ".lock"):
        assert read_run(run).state == "running"
    assert read_run(run).state == "stopped"


def test_a_run_without_a_status_is_pending_and_one_that_lost_its_result_stopped(tmp_path: Path) -> None:
    assert read_run(make_unfinished(tmp_path, make_result("s", 0.1, "l2", 0), None)).state == "pending"
    assert read_run(make_unfinished(tmp_path, make_result("s", 0.1, "l2", 1), "done")).state == "stopped"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 0}, "has schema 0, and this version reads 1"),
        ({"metrics": []}, "is damaged"),
        ({"events": [3]}, "is damaged"),
        ({"choices": None}, "is damaged"),
        (None, "is damaged"),
    ],
)
def test_a_result_that_cannot_be_read_is_not_believed(tmp_path: Path, change: Any, said: str) -> None:
    result = make_result("s", 0.1, "l2", 0)
    run = make_unfinished(tmp_path, result, "done")
    text = json.dumps(asdict(result) | change) if change else "{ this is not"
    (run / "result.json").write_text(text)
    found = read_run(run)
    assert (found.state, found.metrics) == ("unreadable", {})
    assert said in str(found.error)
    assert "force=true" in str(found.error)


@pytest.mark.parametrize("text", ["", "[]", "- a", "{", "a: [", "\x00"])
def test_damaged_files_of_an_unfinished_run_do_no_harm(tmp_path: Path, text: str) -> None:
    run = make_unfinished(tmp_path, make_result("s", 0.1, "l2", 0), "failed")
    for name in ("status.json", ".hydra/config.yaml", ".hydra/hydra.yaml", "run.log"):
        (run / name).write_text(text)
    found = read_run(run)
    assert found.state == "pending"
    assert (found.choices, found.config) == ({}, {})


def test_a_configuration_is_flattened() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": {}}, "e": [1, {"f": 2}]}) == {"a.b.c": 1, "a.d": {}, "e": [1, {"f": 2}]}


def test_seeds_and_ratios_are_one_arm() -> None:
    runs = [record(config={"seed": seed, "pruning.ratio": r}) for seed in (0, 1) for r in (0.1, 0.2)]
    assert arms(runs) == ["taylor"] * 4


def test_any_other_difference_makes_another_arm() -> None:
    runs = [
        record(),
        record(config={"importance.order": "second"}),
        record(choices={"importance": "l2"}),
        record(choices={"pruning": "depth"}),
        record(config={"tracking.mode": "online", "cache_dir": "x"}),
    ]
    found = arms(runs)
    assert found[0] == found[4] == "taylor · block_wise · order=first"
    assert len(set(found)) == 4
    assert found[1:4] == ["taylor · block_wise · order=second", "l2 · block_wise", "taylor · depth"]


def test_equal_runs_of_two_studies_are_two_arms_and_the_study_is_named_only_then() -> None:
    assert arms([record(study="a"), record(study="b")]) == ["taylor · a", "taylor · b"]
    assert arms([record(study="a"), record(study="b", choices={"importance": "l2"})]) == ["taylor", "l2"]


def test_a_key_that_older_runs_lack_makes_no_arm() -> None:
    old = record(config={"seed": 1})
    del old.config["importance.order"]
    assert arms([record(), old]) == ["taylor", "taylor"]


def test_a_seed_of_a_part_that_is_the_runs_own_makes_no_arm() -> None:
    own = [record(config={"seed": seed, "pruning.seed": seed, "importance.label_seed": 0}) for seed in (0, 1)]
    assert arms(own) == ["taylor", "taylor"]
    one = [record(config={"seed": seed, "pruning.seed": 0}) for seed in (0, 1)]
    assert arms(one) == ["taylor", "taylor"]
    other = [record(config={"seed": 0, "pruning.seed": seed}) for seed in (0, 1)]
    assert arms(other) == ["taylor · seed=0", "taylor · seed=1"]


def test_runs_that_are_not_done_make_no_arms() -> None:
    failed = record(state="failed", config={"importance.order": "second"}, choices={"pruning": "depth"})
    assert arms([record(), failed]) == ["taylor", "taylor"]


def test_facets_name_options_differing_keys_ratio_and_seed() -> None:
    kinds, values = facets([record(), record(config={"importance.order": "second", "seed": None})])
    assert [kind["name"] for kind in kinds][-3:] == ["importance.order", "ratio", "seed"]
    assert {"name": "importance", "label": "estimator", "values": ["taylor"]} in kinds
    assert {"name": "importance.order", "label": "importance.order", "values": ["first", "second"]} in kinds
    assert (values[0]["importance"], values[0]["ratio"], values[0]["seed"]) == ("taylor", "0.1", "0")
    assert (values[1]["importance.order"], values[1]["seed"], values[1]["recovery"]) == ("second", "-", "-")


@pytest.mark.parametrize("missing", [["config.yaml", "hydra.yaml"], ["config.yaml"], ["hydra.yaml"]])
def test_a_run_that_was_ended_before_it_wrote_its_configuration_differs_in_nothing(
    tmp_path: Path, missing: list[str]
) -> None:
    results = make_study(tmp_path / "mine", [0.1, 0.2], ["taylor"], [0])
    ended = make_unfinished(tmp_path / "mine", make_result("mine", 0.5, "l2", 1), "running", stage="load")

    def values() -> dict[str, set[str]]:
        found = shown(write_dashboard(tmp_path / "mine").read_text(encoding="utf-8"))
        assert len(found["runs"]) == len(results) + 1
        return {facet["name"]: set(facet["values"]) for facet in found["facets"]}

    before = values()
    assert (before["importance"], before["ratio"], before["seed"]) == (
        {"taylor", "l2"},
        {"0.1", "0.2", "0.5"},
        {"0", "1"},
    )
    for name in missing:
        (ended / ".hydra" / name).unlink()
    after = values()
    assert (after["importance"], after["ratio"], after["seed"]) == ({"taylor"}, {"0.1", "0.2"}, {"0"})
    assert all(len(several) == 1 for name, several in after.items() if name != "ratio")


def test_measures_and_tasks_are_what_any_run_has() -> None:
    runs = [
        record(metrics={"dense/zeroshot/mean": 0.5, "dense/zeroshot/sciq/acc": 0.1, "stability/x": 1.0}),
        record(metrics={"pruned/ppl/b@128": 3.0, "dense/zeroshot/hellaswag/acc_norm": 1.0, "control/probe/loss": 1.0}),
        record(
            metrics={"dense/zeroshot/piqa/acc": 0.1, "dense/zeroshot/piqa/acc_norm": 0.1, "recovered/ppl/a@64": 1.0}
        ),
    ]
    assert [one["name"] for one in measures(runs)] == ["zeroshot/mean", "ppl/a@64", "ppl/b@128"]
    assert [one["lower"] for one in measures(runs)] == [False, True, True]
    assert tasks(runs) == [
        {"name": "piqa", "metric": "acc"},
        {"name": "hellaswag", "metric": "acc_norm"},
        {"name": "sciq", "metric": "acc"},
    ]


def test_measures_on_known_text_are_marked() -> None:
    known = {"dense/ppl/a@64": 1.0, "dense/ppl/b@64": 1.0, "dense/probe/loss": 1.0}
    marks = {"text/a/in_domain": 1.0, "text/b/in_domain": 0.0, "probe/in_domain": 1.0, "probe/contaminated": 1.0}
    labels = [one["label"] for one in measures([record(metrics=known), record(metrics=known | marks)])]
    assert labels == ["perplexity, a@64 (in domain)", "perplexity, b@64", "loss, nats per token (contaminated)"]


def test_every_script_is_on_the_page() -> None:
    assert sorted(SCRIPTS) == sorted(str(path.relative_to(HERE)) for path in HERE.rglob("*.js"))


def test_the_page_holds_the_data_and_the_library_once_and_loads_nothing(tmp_path: Path) -> None:
    small_study(tmp_path / "mine")
    html = write_dashboard(tmp_path / "mine").read_text(encoding="utf-8")
    assert len(shown(html)["runs"]) == 12
    assert html.count("plotly.js v") == 1
    outside_scripts = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"(src|href)=(?!\"#)|url\(|@import|https?:", outside_scripts)


def test_only_the_scripts_of_the_page_may_run() -> None:
    html = page(describe("t", []))
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    assert policy[1].startswith(f"default-src 'none'; script-src {allowed}; ")
    assert len(scripts) == 2


class Tags(HTMLParser):
    """The elements of a page, and its title."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.title = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "title":
            self.title += data


def test_what_runs_say_stays_data() -> None:
    hostile = record(name=HOSTILE, error=HOSTILE, log=HOSTILE, study=HOSTILE, choices={"importance": HOSTILE})
    data = describe(HOSTILE, [hostile])
    html = page(data)
    assert shown(html) == data
    found = Tags(html)
    assert found.tags == Tags(page(describe("t", []))).tags
    assert found.title.strip() == f"{HOSTILE} - Secateur"


def test_embedded_data_cannot_end_its_element() -> None:
    text = embedded({"a": HOSTILE, "b": [math.nan, math.inf, 1.5]})
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == {"a": HOSTILE, "b": [None, None, 1.5]}


def test_the_page_lies_in_the_folder_it_shows(tmp_path: Path) -> None:
    for study in ("a", "b"):
        make_study(tmp_path / "runs" / study, [0.1], ["taylor"], [0])
    runs = tmp_path / "runs"
    one = find_runs([runs / "a"])[0]
    assert write_dashboard(runs / "a") == runs / "a" / "dashboard.html"
    assert write_dashboard([runs / "a", runs / "b"]) == runs / "dashboard.html"
    assert write_dashboard(one) == one / "dashboard.html"
    assert write_dashboard(runs / "a", tmp_path / "x" / "y.html") == tmp_path / "x" / "y.html"
    assert shown((runs / "dashboard.html").read_text(encoding="utf-8"))["title"] == "a, b"
    assert len(find_runs([runs])) == 2


def test_a_study_without_runs_has_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert shown(write_dashboard(tmp_path / "empty").read_text(encoding="utf-8"))["runs"] == []


def test_the_command_prints_the_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_study(tmp_path / "a", [0.1], ["taylor"], [0])
    assert main([str(tmp_path / "a")]) == 0
    assert str(tmp_path / "a" / "dashboard.html") in capsys.readouterr().out
    assert main([str(tmp_path / "a"), "--out", str(tmp_path / "other.html")]) == 0
    assert (tmp_path / "other.html").exists()
    assert main([str(tmp_path / "missing")]) == 1
    assert "there is no such folder" in capsys.readouterr().err
