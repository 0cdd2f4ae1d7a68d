"""Ratio-quality curves of made-up studies, and the largest ratio that keeps enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from evaluation.analysis.curve_tables import largest_ratio, print_curves
from evaluation.analysis.estimate import Settings
from evaluation.analysis.observations import read_study
from evaluation.analysis.ratio_curve import NEVER, RatioCurve, ratio_curves
from tests.evaluation.studies import make_study
from tests.evaluation.tradeoff_study import changed, make_tradeoff

QUICK = Settings(resamples=300)
QUALITY = "recovered/probe/tok_acc"


def curves(folder: Path, points: float = 1.0, seeds: int = 3) -> dict[str, RatioCurve]:
    make_study(folder, [0.1, 0.2, 0.3, 0.5], ["taylor", "l2"], list(range(seeds)))
    return {curve.name: curve for curve in ratio_curves(read_study([folder]), QUALITY, points, QUICK)}


def test_a_curve_of_each_estimator_says_how_far_it_can_be_cut(tmp_path: Path) -> None:
    found = curves(tmp_path / "three", points=3.0)
    taylor, l2 = found["taylor"], found["l2"]
    assert taylor.runs == 12
    assert taylor.dense == pytest.approx(0.28)
    assert all(low <= value <= high for low, value, high in zip(taylor.lows, taylor.fitted, taylor.highs, strict=True))
    assert l2.largest < taylor.largest  # which does less harm
    assert np.interp(taylor.largest, taylor.ratios, taylor.fitted) == pytest.approx(0.28 - 0.03)
    assert taylor.largest_low <= taylor.largest <= taylor.largest_high
    assert largest_ratio(taylor).startswith(f"within 3 points of dense: up to ratio {taylor.largest:.3f} (interval")


def test_a_ratio_that_is_never_or_always_good_enough_is_said_so(tmp_path: Path) -> None:
    never = curves(tmp_path / "never", points=0.01)["l2"]
    assert never.largest == NEVER
    assert "not reached" in largest_ratio(never)
    assert f"at {never.ratios[0]:.3f}, the smallest measured" in largest_ratio(never)
    always = curves(tmp_path / "always", points=50)["l2"]
    assert always.largest == always.ratios[-1]
    assert "every measured ratio, up to 0.501" in largest_ratio(always)
    single = curves(tmp_path / "single", points=3, seeds=1)["taylor"]
    assert single.lows == ()
    assert "no interval: some ratio has a single run" in largest_ratio(single)


def test_one_ratio_or_no_dense_model_makes_no_claim(tmp_path: Path) -> None:
    make_tradeoff(tmp_path / "tradeoff", seeds=1)
    study = read_study([tmp_path / "tradeoff"])
    assert all("one ratio only" in curve.trouble for curve in ratio_curves(study, QUALITY, 1.0, QUICK))
    make_study(tmp_path / "two", [0.1, 0.2], ["l2"], [0, 1])
    without = changed(read_study([tmp_path / "two"]), lambda *_: {"dense/probe/tok_acc": None})
    [curve] = ratio_curves(without, QUALITY, 1.0, QUICK)
    assert largest_ratio(curve) == "within 1 point of dense: the dense model was not measured"


def test_arms_of_one_ratio_are_counted_as_arms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where one estimator makes them all."""
    make_tradeoff(tmp_path / "tradeoff", seeds=1)
    study = read_study([tmp_path / "tradeoff"])
    assert len({run.choices["importance"] for run in study.runs}) == 1 < len(set(study.arms))
    alone = ratio_curves(study, QUALITY, 1.0, QUICK)
    print_curves(alone, Console(width=100))
    assert capsys.readouterr().out == f"{QUALITY}: {len(set(study.arms))} arms have one ratio only, and no curve\n\n"
    print_curves(alone[:1], Console(width=100))
    assert f"{QUALITY}: 1 arm has one ratio only" in capsys.readouterr().out
