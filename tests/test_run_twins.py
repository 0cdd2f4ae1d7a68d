"""`algorithmic_stability=twins` through the command: its figures are in the result, and the model of the run is as without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_run import folders, launch, result_of

TWINS = ["algorithmic_stability=twins", "algorithmic_stability.twins=2", "algorithmic_stability.swapped=3"]
COMMON = ["recovery.batch_size=8", "tracking=none", "save_model=false"]


@pytest.mark.slow
def test_twins_are_measured_and_leave_the_run_as_it_is(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    launch(runs, *TWINS, *COMMON)
    (folder,) = folders(runs).values()
    metrics = result_of(folder)["metrics"]
    found = {
        name.split("/", 1)[1]: value for name, value in metrics.items() if name.startswith("algorithmic_stability/")
    }
    assert found["examples"] == 16
    assert found["rerun/arg_rel"] == 0
    assert 0 < found["arg_rel"] < found["other_seed/arg_rel"]
    assert found["uas_lb"] > 0
    rows = json.loads((folder / "algorithmic_stability.json").read_text())["pruned"]["twins"]
    assert [len(row["slots"]) for row in rows] == [3, 3]
    launch(runs, *COMMON)
    (plain,) = (place for place in folders(runs).values() if place != folder)
    without = result_of(plain)["metrics"]
    assert not [name for name in without if name.startswith("algorithmic_stability/")]
    for name in ("pruned/probe/loss", "recovered/probe/loss", "control/probe/loss"):
        assert without[name] == metrics[name]
