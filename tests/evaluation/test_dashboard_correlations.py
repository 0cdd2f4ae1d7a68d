"""The chart of correlations in headless Chromium, against numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.dashboard import write_dashboard
from evaluation.result import RunResult
from tests.evaluation.browser import Browser
from tests.evaluation.tradeoff_study import make_tradeoff

X, Y = "stability/instability_mean/tok_acc", "generalization/gap/loss"


def test_correlations_are_those_of_the_runs(tmp_path: Path) -> None:
    results = make_tradeoff(tmp_path / "tradeoff")
    with Browser(tmp_path / "profile") as page:
        page.open(write_dashboard(tmp_path / "tradeoff"))
        assert drawn(page)[0]["name"] == "all runs"
        row = page.run("CHARTS.find(c => c.id === 'correlations').place.layout.yaxis.ticktext").index(
            "gap to training text: loss (nats)"
        )
        pooled, inside, _ = ([trace["x"][row], trace["low"][row], trace["high"][row]] for trace in drawn(page))
        x, y = columns(results)
        assert pooled[0] == pytest.approx(np.corrcoef(x, y)[0, 1])
        assert pooled[2] == pytest.approx(np.tanh(np.arctanh(pooled[0]) + 1.959964 / np.sqrt(24)) - pooled[0])
        arms = [result.name.rpartition("-")[0] for result in results]
        means = {arm: np.mean([[x[i], y[i]] for i in range(27) if arms[i] == arm], axis=0) for arm in arms}
        rest = np.array([[x[i], y[i]] - means[arm] for i, arm in enumerate(arms)])
        assert inside[0] == pytest.approx(np.corrcoef(rest.T)[0, 1])
        assert inside[2] == pytest.approx(np.tanh(np.arctanh(inside[0]) + 1.959964 / np.sqrt(24 - 8)) - inside[0])

        page.run(f"(c => {{ c.chosen.y = '{Y}'; return drawChart(c) }})(CHARTS.find(c => c.id === 'correlations'))")
        [by_rate] = drawn(page)
        expected = [np.corrcoef(*columns([one for one in results if len(one.events) == k]))[0, 1] for k in (4, 2, 1)]
        assert by_rate["y"] == pytest.approx(expected)
        assert page.errors == []


def columns(results: list[RunResult]) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.array([result.metrics[name] for result in results]) for name in (X, Y))
    return x, y


def drawn(page: Browser) -> list[dict[str, Any]]:
    """The traces of the chart, with the lengths of their whiskers."""
    ends = "high: [...(t.error_x?.array ?? [])], low: [...(t.error_x?.arrayminus ?? [])]"
    fields = f"({{name: t.name, x: [...t.x], y: [...t.y], {ends}}})"
    return page.run(f"drawing.then(() => CHARTS.find(c => c.id === 'correlations').place.data.map(t => {fields}))")
