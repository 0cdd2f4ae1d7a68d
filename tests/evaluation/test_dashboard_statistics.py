"""The figures that the page computes itself, against scipy and the plain definitions."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from evaluation.dashboard.page import HERE
from tests.evaluation.browser import Browser

Compute = Callable[[str, list[Any]], Any]


@pytest.fixture(scope="module")
def compute(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Calls a function of statistics.js, by Node.js where it is installed and else by Chromium."""
    source = (HERE / "statistics.js").read_text(encoding="utf-8")
    node = shutil.which("node")
    if node is None:
        with Browser(tmp_path_factory.mktemp("profile")) as browser:
            yield lambda name, arguments: browser.run(
                f"(() => {{ {source}\n return {name}(...{json.dumps(arguments)}) }})()"
            )
        return

    answer = "line => { const [name, given] = JSON.parse(line); console.log(JSON.stringify(eval(name)(...given))) }"
    program = f"{source}\nrequire('readline').createInterface({{input: process.stdin}}).on('line', {answer})"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([node, "-e", program], text=True, **pipes) as process:
        assert process.stdin
        assert process.stdout
        put, get = process.stdin, process.stdout

        def call(name: str, arguments: list[Any]) -> Any:
            print(json.dumps([name, arguments]), file=put, flush=True)
            return json.loads(get.readline())

        yield call


def sample(seed: int, n: int = 12) -> tuple[list[float], list[float], list[float]]:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    x = z + rng.normal(size=n)
    y = np.round(0.5 * x - z + rng.normal(size=n), 0)  # with ties
    return x.tolist(), y.tolist(), z.tolist()


def dominated(point: dict[str, float], others: list[dict[str, float]]) -> bool:
    """The definition: another is no worse in both, and better in one."""
    return any(other["cost"] <= point["cost"] and other["loss"] <= point["loss"] and other != point for other in others)


@pytest.mark.parametrize("seed", range(4))
def test_the_pareto_front_is_what_nothing_dominates(compute: Compute, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = [{"cost": float(c), "loss": float(v)} for c, v in rng.integers(0, 12, size=(30, 2))]
    expected = sorted({(point["cost"], point["loss"]) for point in points if not dominated(point, points)})
    assert [(point["cost"], point["loss"]) for point in compute("paretoFront", [points])] == expected
    assert compute("paretoFront", [[]]) == []


@pytest.mark.parametrize("seed", range(3))
def test_correlations_agree_with_scipy(compute: Compute, seed: int) -> None:
    x, y, _ = sample(seed)
    known = stats.pearsonr(x, y)
    assert compute("pearson", [x, y]) == pytest.approx(known.statistic)
    assert compute("spearman", [x, y]) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert compute("ranks", [y]) == stats.rankdata(y).tolist()
    low, high = known.confidence_interval(0.95)
    assert compute("fisherInterval", [known.statistic, len(x)]) == pytest.approx([low, high], abs=1e-6)


def test_group_means_go_and_what_is_held_constant_widens_the_interval(compute: Compute) -> None:
    values, groups = [1.0, 2.0, 4.0, 0.1 + 0.2], ["a", "a", "b", "c"]
    assert compute("withoutGroupMeans", [values, groups]) == [-0.5, 0.5, 0.0, 0.0]
    thirds = [0.7, 0.7, 0.7]  # whose mean is not 0.7 to the last digit
    assert compute("withoutGroupMeans", [thirds, ["a"] * 3]) == [0.0] * 3
    assert compute("fisherInterval", [0.5, 12, 5]) == pytest.approx(compute("fisherInterval", [0.5, 7]))
    assert compute("fisherInterval", [0.5, 6, 3]) == [None, None]


def test_the_partial_correlation_is_that_of_the_residuals(compute: Compute) -> None:
    x, y, z = sample(7)
    design = np.column_stack([np.ones(len(z)), z])
    residuals = [v - design @ np.linalg.lstsq(design, np.array(v), rcond=None)[0] for v in (x, y)]
    assert compute("partialCorrelation", [x, y, z]) == pytest.approx(np.corrcoef(*residuals)[0, 1])
    assert compute("partialCorrelation", [x, y, x]) is None  # NaN: nothing of x is left


def test_lines_means_and_deviations(compute: Compute) -> None:
    x, y, _ = sample(3)
    slope, intercept = np.polyfit(x, y, 1)
    assert compute("regressionLine", [x, y]) == pytest.approx({"slope": slope, "intercept": intercept})
    assert compute("mean", [x]) == pytest.approx(statistics.mean(x))
    assert compute("deviation", [x]) == pytest.approx(statistics.stdev(x))
    assert compute("deviation", [[1.0]]) is None
    assert compute("pearson", [[1.0, 1.0], [2.0, 3.0]]) is None
