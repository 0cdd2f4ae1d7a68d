from __future__ import annotations

import json
import math
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from evaluation.report import model_card, per_task_table, print_report
from evaluation.report_rows import fact_rows, report_rows
from evaluation.result import RunResult, describe_environment
from evaluation.run_folder import RunFolder

METRICS = {
    "dense/zeroshot/boolq/acc": 0.625,
    "dense/zeroshot/boolq/stderr": 0.075,
    "dense/zeroshot/boolq/n": 40,
    "dense/zeroshot/hellaswag/acc": 0.311,
    "dense/zeroshot/hellaswag/acc_norm": 0.402,
    "dense/zeroshot/hellaswag/stderr": 0.078,
    "dense/zeroshot/hellaswag/n": 40,
    "dense/zeroshot/lambada_openai/acc": 0.287,
    "dense/zeroshot/lambada_openai/stderr": 0.071,
    "dense/zeroshot/lambada_openai/n": 40,
    "dense/zeroshot/mean": 0.5135,
    "dense/zeroshot/mean_stderr": 0.054,
    "dense/zeroshot/mean_above_chance": 0.4381,
    "dense/zeroshot/mean_above_chance_stderr": 0.043,
    "dense/ppl/passages@128": 41.234,
    "dense/ppl/wikipedia@128": 25.678,
    "dense/probe/tok_acc": 0.3712,
    "dense/params": 134515008,
    "dense/macs": 8606711808.0,
    "dense/weights_bytes": 538060032,
    "dense/peak_bytes": 638060032,
    "dense/prefill_tok_s@8": 1234.5,
    "dense/decode_tok_s@1": 23.45,
}
STAGED = {
    name.replace("dense", stage, 1): value
    for stage in ("pruned", "recovered", "control")
    for name, value in METRICS.items()
}
RUN = {
    "pruned/ratio_asked": 0.2,
    "pruned/ratio_reached": 0.1987,
    "pruned/ratio_of_total": 0.1987,
    "stability/instability_mean/tok_acc": 0.456,
    "stability/instability_mean/tok_acc_low": 0.444,
    "stability/instability_mean/tok_acc_high": 0.469,
    "stability/pct_mean/tok_acc": 54.4,
    "stability/instability_mean/loss": 2.345,
    "stability/instability_mean/zeroshot": 0.111,
    "stability/recovered_frac/tok_acc": 0.333,
    "stability/recovered_frac/loss": 0.777,
    "generalization/gain/tok_acc": -0.0456,
    "generalization/gain/loss": -0.567,
    "generalization/gain/zeroshot": -0.089,
    "generalization/gap/loss": 0.098,
    "stability/instability_mean/kl": 0.4321,
    "generalization/retained/tok_acc": 0.654,
    "generalization/gain_match/loss": 0.876,
    "generalization/gap_out_of_domain/loss": 0.765,
}


def result(**changes: Any) -> RunResult:
    made = RunResult(
        key="0123abcd",
        name="smollm2_135m-taylor-r0.20-one_shot-lora-s0-0123abcd",
        study="mine",
        config={"model": {"name": "smollm2_135m", "dtype": "float32"}},
        choices={"importance": "taylor", "schedule": "one_shot", "recovery": "lora"},
        metrics=METRICS | STAGED | RUN,
        events=[{"event/index": 0, "event/instability/tok_acc": 0.456}],
        widths=[{"query_heads": 6, "kv_heads": 2, "mlp_channels": 1200}],
        environment={"versions": {"torch": "2"}},
        timings={"dense": 12.5},
    )
    return replace(made, **changes)


def no_constants(name: str) -> NoReturn:
    raise AssertionError(f"{name} is no JSON")


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=no_constants)


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    result().write(tmp_path / "result.json")
    assert RunResult.read(tmp_path / "result.json") == result()


def test_nan_and_infinity_become_null_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    odd = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5}
    result(metrics=odd, events=[{"x": math.nan}], environment={"deep": [{"y": math.inf}]}).write(path)
    assert strict(path.read_text(encoding="utf-8"))["metrics"] == {"a": None, "b": None, "c": None, "d": 1.5}
    found = RunResult.read(path)
    assert found is not None
    assert found.events == [{"x": None}]
    assert found.environment == {"deep": [{"y": None}]}


def test_a_result_with_nulls_can_still_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result(metrics=dict.fromkeys(result().metrics, math.nan) | METRICS).write(tmp_path / "result.json")
    found = RunResult.read(tmp_path / "result.json")
    assert found is not None
    print_report(found)
    assert "0.625" in capsys.readouterr().out
    assert "0.625" in model_card(found)
    assert per_task_table(found.metrics)[1]


def test_a_truncated_result_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result().write(path)
    whole = path.read_text(encoding="utf-8")
    for length in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_text(whole[:length], encoding="utf-8")
        assert RunResult.read(path) is None


@pytest.mark.parametrize(
    "change",
    [{"schema": 0}, {"schema": 2}, {"status": "failed"}, {"unknown_field": 1}],
)
def test_a_result_of_another_kind_is_no_result(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(asdict(result()) | change), encoding="utf-8")
    assert RunResult.read(path) is None


@pytest.mark.parametrize("text", ["[]", "null", "3", '{"schema": 1, "status": "done"}', "\ufeffnot json"])
def test_other_json_is_no_result(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text, encoding="utf-8")
    assert RunResult.read(tmp_path / "result.json") is None


def test_a_missing_file_or_a_folder_is_no_result(tmp_path: Path) -> None:
    assert RunResult.read(tmp_path / "result.json") is None
    assert RunResult.read(tmp_path) is None


def test_writing_leaves_nothing_but_the_result(tmp_path: Path) -> None:
    result().write(tmp_path / "result.json")
    result(study="other").write(tmp_path / "result.json")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_the_environment_names_versions_and_machine_and_is_json() -> None:
    found = describe_environment("cpu")
    assert strict(json.dumps(found)) == found
    assert found["versions"]["torch"]
    assert found["device"] == "cpu"
    assert found["threads"] >= 1
    assert found["peak_process_bytes"] > 2**20


def test_begin_clears_the_old_result_and_events(tmp_path: Path) -> None:
    result().write(tmp_path / "result.json")
    RunFolder(tmp_path).add_event({"event/index": 0.0})
    again = RunFolder(tmp_path)
    assert again.result() is not None
    again.begin()
    assert again.result() is None
    assert not (tmp_path / "events.jsonl").exists()


def test_begin_in_a_new_folder_does_nothing(tmp_path: Path) -> None:
    RunFolder(tmp_path).begin()
    assert list(tmp_path.iterdir()) == []


def test_a_stage_is_named_in_the_status_and_timed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with run.stage("dense"):
        status = strict((tmp_path / "status.json").read_text(encoding="utf-8"))
    assert (status["state"], status["stage"], status["error"]) == ("running", "dense", None)
    assert run.timings["dense"] >= 0


def fail(run: RunFolder) -> None:
    try:
        with run.stage("pruned"):
            raise KeyError("lost")
    except KeyError as error:
        run.failed(error)


def test_a_failure_leaves_its_stage_error_and_traceback(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text("what was logged before\n", encoding="utf-8")
    fail(RunFolder(tmp_path))
    status = strict((tmp_path / "status.json").read_text(encoding="utf-8"))
    assert (status["state"], status["stage"], status["error"]) == ("failed", "pruned", "KeyError: 'lost'")
    log = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert log.startswith("what was logged before\n")
    assert "Traceback" in log
    assert 'raise KeyError("lost")' in log
    assert RunFolder(tmp_path).result() is None


def test_done_is_when_the_result_is_there(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    fail(run)
    run.done(result())
    assert RunFolder(tmp_path).result() == result()
    status = strict((tmp_path / "status.json").read_text(encoding="utf-8"))
    assert (status["state"], status["error"]) == ("done", None)


def test_events_are_kept_in_order_one_json_line_each(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for index in range(3):
        run.add_event({"event/index": index})
        lines = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
        assert [strict(line)["event/index"] for line in lines] == list(range(index + 1))


def test_outcomes_of_stages_stand_side_by_side(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.keep_outcomes(
        "dense", {"zeroshot/boolq": {"metrics": {"acc": 0.5}}, "zeroshot/piqa": {"metrics": {"acc": 0.6}}}
    )
    run.keep_outcomes("recovered", {"zeroshot/boolq": {"metrics": {"acc": 0.4}}})
    boolq = strict((tmp_path / "zeroshot" / "boolq.json").read_text(encoding="utf-8"))
    assert boolq == {"dense": {"metrics": {"acc": 0.5}}, "recovered": {"metrics": {"acc": 0.4}}}
    assert list(strict((tmp_path / "zeroshot" / "piqa.json").read_text(encoding="utf-8"))) == ["dense"]


def test_damaged_outcomes_are_written_anew(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    (tmp_path / "zeroshot").mkdir()
    (tmp_path / "zeroshot" / "boolq.json").write_text('{"dense": ', encoding="utf-8")
    run.keep_outcomes("pruned", {"zeroshot/boolq": {"metrics": {"acc": 0.5}}})
    found = strict((tmp_path / "zeroshot" / "boolq.json").read_text(encoding="utf-8"))
    assert found == {"pruned": {"metrics": {"acc": 0.5}}}


def test_a_run_that_is_interrupted_while_its_figures_are_sent_stays_done(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)

    def job() -> None:
        with run.attempt():
            run.done(result())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job()
    assert strict((tmp_path / "status.json").read_text(encoding="utf-8"))["state"] == "done"
    assert run.result() == result()


def test_undefined_figures_of_an_event_become_null(tmp_path: Path) -> None:
    RunFolder(tmp_path).add_event({"event/index": 0, "event/recovered_frac/loss": math.nan})
    assert strict((tmp_path / "events.jsonl").read_text(encoding="utf-8"))["event/recovered_frac/loss"] is None


def test_undefined_figures_of_a_task_become_null(tmp_path: Path) -> None:
    RunFolder(tmp_path).keep_outcomes("pruned", {"zeroshot/boolq": {"metrics": {"stderr": math.nan}}})
    found = strict((tmp_path / "zeroshot" / "boolq.json").read_text(encoding="utf-8"))
    assert found == {"pruned": {"metrics": {"stderr": None}}}


def test_a_second_worker_waits_until_the_first_has_finished(tmp_path: Path) -> None:
    order: list[str] = []
    started = threading.Event()

    def second() -> None:
        started.set()
        with RunFolder(tmp_path).locked():
            order.append("second")

    worker = threading.Thread(target=second)
    with RunFolder(tmp_path).locked():
        worker.start()
        started.wait(5)
        worker.join(0.2)
        order.append("first")
    worker.join(10)
    assert order == ["first", "second"]


SHOWN = (
    "0.625 ± 0.075",
    "0.402 ± 0.078",
    "0.287 ± 0.071",
    "0.513 ± 0.054",
    "0.438 ± 0.043",
    "41.23",
    "25.68",
    "0.3712",
    "134,515,008",
    "8.61 G",
    "513.13 MiB",
    "608.50 MiB",
    "23.4",
)


def test_rows_hold_every_figure_of_every_stage() -> None:
    for stage in ("dense", "pruned", "recovered", "control"):
        cells = [row.cells[stage] for part in report_rows(result().metrics) for row in part]
        assert set(SHOWN) <= set(cells)
        assert len(cells) == 14


def test_rows_without_figures_are_left_out() -> None:
    rows = [row for part in report_rows({"dense/params": 12, "dense/probe/tok_acc": 0.5}) for row in part]
    assert [row.cells for row in rows] == [{"dense": "0.5000"}, {"dense": "12"}]


def test_tasks_stand_in_the_papers_order_with_their_main_metric() -> None:
    labels = [row.label for row in report_rows(METRICS)[0]]
    assert labels[:3] == ["boolq (acc)", "hellaswag (acc_norm)", "lambada_openai (acc)"]


def test_the_printed_report_holds_all_figures_within_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(result())
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= 100
    assert "…" not in out
    assert result().name in out
    for figure in SHOWN:
        assert out.count(figure) == 4
    for _, value, _ in fact_rows(result().metrics):
        assert value in out


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("pruned/ratio_reached", "19.87%"),
        ("pruned/ratio_asked", "20.00%"),
        ("stability/instability_mean/tok_acc_low", "44.4%"),
        ("stability/instability_mean/tok_acc_high", "46.9%"),
        ("stability/instability_mean/tok_acc", "45.6%"),
        ("stability/pct_mean/tok_acc", "54.4 %"),
        ("stability/instability_mean/loss", "+2.345"),
        ("stability/instability_mean/zeroshot", "11.1%"),
        ("stability/recovered_frac/tok_acc", "33.3%"),
        ("stability/recovered_frac/loss", "77.7%"),
        ("generalization/gain/tok_acc", "-0.0456"),
        ("generalization/gain/loss", "-0.567"),
        ("generalization/gain/zeroshot", "-0.089"),
        ("generalization/gap/loss", "+0.098"),
        ("stability/instability_mean/kl", "0.4321"),
        ("generalization/retained/tok_acc", "65.4%"),
        ("generalization/gain_match/loss", "+0.876"),
        ("generalization/gap_out_of_domain/loss", "+0.765"),
    ],
)
def test_a_fact_is_shown_with_its_sign_and_unit(name: str, shown: str) -> None:
    ((_, value, _),) = fact_rows({name: RUN[name]})
    assert value == shown


def test_the_instability_is_followed_by_its_interval() -> None:
    values = [value for _, value, _ in fact_rows(RUN)]
    place = values.index("45.6%")
    assert values[place : place + 3] == ["45.6%", "44.4%", "46.9%"]
    assert len(values) == 18


def test_facts_that_are_undefined_are_shown_as_a_dash_and_unknown_ones_left_out() -> None:
    assert [value for _, value, _ in fact_rows({"stability/recovered_frac/loss": math.nan})] == ["-"]


def test_the_model_card_holds_the_figures_and_how_it_was_made() -> None:
    card = model_card(result())
    assert card.startswith("---\n")
    for figure in SHOWN:
        assert card.count(figure) == 3  # dense, pruned, recovered; a control has no checkpoint
    assert "19.9%" in card
    assert "importance: taylor" in card
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1


def test_the_per_task_table_has_a_line_for_every_stage_task_and_metric() -> None:
    columns, rows = per_task_table(METRICS | {"recovered/zeroshot/boolq/acc": 0.5, "recovered/zeroshot/boolq/n": 40})
    assert columns == ["stage", "task", "metric", "value", "stderr", "n"]
    assert rows == [
        ["dense", "boolq", "acc", 0.625, 0.075, 40],
        ["dense", "hellaswag", "acc", 0.311, None, 40],  # the standard error is that of acc_norm
        ["dense", "hellaswag", "acc_norm", 0.402, 0.078, 40],
        ["dense", "lambada_openai", "acc", 0.287, 0.071, 40],
        ["recovered", "boolq", "acc", 0.5, None, 40],
    ]
