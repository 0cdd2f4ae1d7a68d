"""The analysis of made-up studies: arms, and how their figures go with each other."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from evaluation.analysis.association import associate, associate_all, associate_by_rate
from evaluation.analysis.estimate import Settings
from evaluation.analysis.observations import RATIO, TAIL_STEPS, Study, matching, read_study
from evaluation.analysis.study_analysis import FINAL, GAIN, GAP, INSTABILITY
from evaluation.analysis.tables import sign
from recovery.base import When
from recovery.lora import Lora
from tests.evaluation.studies import make_unfinished, small_study
from tests.evaluation.tradeoff_study import RATIO as ASKED
from tests.evaluation.tradeoff_study import STEPS, changed, make_tradeoff, make_unfinished_tradeoff, part

QUICK = Settings(resamples=300, given=(RATIO, TAIL_STEPS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_unfinished_tradeoff(tmp_path_factory.mktemp("runs") / "tradeoff")


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return read_study([folder])


def test_arms_are_what_differs_besides_the_seed(study: Study, tmp_path: Path) -> None:
    assert len(study.runs) == 27
    assert len(set(study.arms)) == 9
    for arm in set(study.arms):
        runs = [run for run, name in zip(study.runs, study.arms, strict=True) if name == arm]
        assert len({(run.config["pruning.direction"], run.config["schedule.events"]) for run in runs}) == 1
    assert study.left_out == {"failed": 1, "pending": 1}
    small_study(tmp_path)
    ratios = read_study([tmp_path])
    assert len(set(ratios.curves)) == 2
    assert len(set(ratios.arms)) == 6  # the ratio makes an arm too
    assert ratios.left_out == {"failed": 1}


def test_without_a_finished_run_the_states_are_said(tmp_path: Path) -> None:
    run = make_unfinished(tmp_path / "mine", make_tradeoff(tmp_path / "other", seeds=1)[0], "failed")
    with pytest.raises(ValueError, match=f"{run}: no finished run to analyse .1 failed"):
        read_study([run])
    with pytest.raises(ValueError, match="there is no such folder"):
        read_study([tmp_path / "nowhere"])


def test_rates_and_tail_steps_follow_from_the_configuration(study: Study) -> None:
    events = np.array([run.config["schedule.events"] for run in study.runs])
    assert study.rates() == pytest.approx(100 * ASKED / events)
    recovery = Lora(when=When.each, tail=0.25, steps=STEPS)
    assert study.column(TAIL_STEPS).tolist() == [len(recovery.steps_after(1 - 1 / count, 1.0)) for count in events]

    def steps(**changes: object) -> float:
        run = dataclasses.replace(study.runs[-1], config=study.runs[-1].config | changes)  # 4 events
        return dataclasses.replace(study, runs=(run,)).column(TAIL_STEPS)[0]

    assert steps(**{"recovery.when": "last"}) == STEPS
    assert steps(**{"recovery.tail": 0.0}) == STEPS / 4
    sized = dataclasses.replace(study.runs[-1], choices={"schedule": "stability_target"}, events=study.runs[-1].events)
    sized.events[-2]["event/ratio_asked"] = 0.9 * ASKED  # so the last event removes a tenth
    assert dataclasses.replace(study, runs=(sized,)).column(TAIL_STEPS)[0] == pytest.approx(STEPS * (0.25 + 0.075))
    assert changed(study, lambda *_: {"recovery/steps": 0.0}).column(TAIL_STEPS) == pytest.approx(0)


def test_a_pair_has_every_statistic_of_its_columns(study: Study) -> None:
    one = associate(study, INSTABILITY, FINAL, QUICK)
    x, y = study.column(INSTABILITY), study.column(FINAL)
    assert (one.runs, one.arms, one.trouble) == (27, 9, "")
    assert one.estimates["pearson"].value == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert one.estimates["slope"].value == pytest.approx(np.polyfit(x, y, 1)[0])
    inside = [
        column - np.array([column[[other == arm for other in study.arms]].mean() for arm in study.arms])
        for column in (x, y)
    ]
    assert one.estimates["within"].value == pytest.approx(np.corrcoef(*inside)[0, 1])
    assert one.estimates["partial"].note == f"given {TAIL_STEPS}"  # the ratio is the same in all runs
    for kind in ("pearson", "spearman", "kendall", "within", "partial", "slope"):
        estimate = one.estimates[kind]
        assert {"bca", "arms"} <= set(estimate.intervals), kind
        assert all(low < estimate.value < high for low, high in estimate.intervals.values()), kind
    assert sign(one.estimates["pearson"]) == "+"
    assert sign(associate(study, INSTABILITY, GAP, QUICK).estimates["pearson"]) == "-"


def test_noise_is_unclear_and_pairs_are_corrected_together(study: Study) -> None:
    rng = np.random.default_rng(0)
    noisy = changed(study, lambda *_: {"generalization/noise": float(rng.normal())})
    found = associate_all(noisy, [(INSTABILITY, y) for y in (FINAL, GAP, "generalization/noise")], QUICK)
    assert sign(found[2].estimates["pearson"]) == "unclear"
    p_values = [one.estimates["pearson"].p for one in found]
    smallest = int(np.argmin(p_values))
    assert found[smallest].estimates["pearson"].p_holm == pytest.approx(3 * p_values[smallest])
    assert found[2].estimates["pearson"].p_holm == pytest.approx(p_values[2])


def trouble(study: Study, y: str = FINAL) -> str:
    return associate(study, INSTABILITY, y, QUICK).trouble


def test_what_cannot_be_said_is_said_in_words(study: Study) -> None:
    assert trouble(study, "generalization/none") == "no run has both"
    few = changed(study, lambda index, _: {} if index < 7 else {FINAL: None})
    assert trouble(few) == "too few runs: 7, and 8 are needed"
    assert trouble(changed(study, lambda index, _: {} if index < 8 else {FINAL: None})) == ""
    assert trouble(changed(study, lambda *_: {INSTABILITY: 0.1})) == "x the same in all runs"
    assert trouble(changed(study, lambda *_: {INSTABILITY: 0.1, FINAL: 0.3})) == "x and y the same in all runs"
    assert trouble(changed(study, lambda index, _: {FINAL: math.nan} if index else {})) == (
        "too few runs: 1, and 8 are needed"
    )


def test_one_arm_and_arms_of_one_run_have_no_correlation_inside(study: Study) -> None:
    first_seeds = part(study, lambda _, run: run.config["seed"] == 0)
    single = associate(first_seeds, INSTABILITY, FINAL, QUICK)
    assert (single.runs, single.arms) == (9, 9)
    assert single.estimates["within"].note == "every arm has a single run"
    one_arm = associate(dataclasses.replace(study, arms=("a",) * 27), INSTABILITY, FINAL, QUICK)
    assert one_arm.estimates["within"].note == "there is one arm: the same as pooled"
    assert "arms" not in one_arm.estimates["pearson"].intervals  # too few to draw from
    assert math.isfinite(one_arm.estimates["pearson"].value)


def test_covariates_that_say_nothing_or_everything_are_named(study: Study) -> None:
    def partial(given: tuple[str, ...], of: Study = study) -> tuple[float, str]:
        estimate = associate(of, INSTABILITY, FINAL, dataclasses.replace(QUICK, given=given)).estimates["partial"]
        return estimate.value, estimate.note

    assert partial((RATIO,))[1] == f"nothing to hold constant: {RATIO} does not vary"
    assert partial(())[1] == "nothing to hold constant: nothing was given"
    value, note = partial((INSTABILITY,))
    assert math.isnan(value)
    assert note.endswith("nothing of x or of y is left")
    missing = changed(study, lambda index, _: {"half": float(index)} if index % 2 else {})
    assert partial(("half",), missing)[1] == "half is missing in some runs"


def test_correlations_within_a_rate_are_of_its_runs(study: Study) -> None:
    rows = associate_by_rate(study, INSTABILITY, FINAL, QUICK)
    assert [rate for rate, _ in rows] == [5, 10, 20]
    own = np.array([run.config["schedule.events"] == 4 for run in study.runs])
    expected = np.corrcoef(study.column(INSTABILITY)[own], study.column(FINAL)[own])[0, 1]
    assert rows[0][1].estimates["pearson"].value == pytest.approx(expected)
    assert [one.runs for _, one in rows] == [9, 9, 9]


def test_metrics_are_found_by_pattern_and_near_names_are_offered(study: Study) -> None:
    assert matching(study, ["flatness/*"], "--y") == ["flatness/recovered/trC_relative"]  # not its standard error
    assert matching(study, [FINAL, "generalization/*/tok_acc"], "--y") == [FINAL, GAIN]
    with pytest.raises(
        ValueError, match=r"--y generalization/final/tokacc: no finished run .*generalization/final/tok_acc"
    ):
        matching(study, ["generalization/final/tokacc"], "--y")
