"""Flatness through the command itself."""

from __future__ import annotations

from pathlib import Path

from tests.test_run import folders, launch, result_of

QUICK = [
    "flatness=default",
    "flatness.samples=4",
    "flatness.length=16",
    "flatness.products=6",
    "flatness.eigenvalues=2",
    "flatness.iterations=2",
    "flatness.draws=2",
    "tracking=none",
]


def test_flatness_is_measured_at_every_stage_where_its_figures_are_there(tmp_path: Path) -> None:
    launch(tmp_path / "runs", *QUICK, "save_model=false")
    (folder,) = folders(tmp_path / "runs").values()
    metrics = result_of(folder)["metrics"]
    found = {name.split("/")[1]: name for name in metrics if name.startswith("flatness/")}
    assert sorted(found) == ["dense", "pruned", "recovered"]
    size = {stage: metrics[f"flatness/{stage}/parameters"] for stage in found}
    assert size["dense"] == 2 * (64 * 64 + 64 * 128) + (64 * 64 + 64 * 128)
    assert size["dense"] > size["pruned"] == size["recovered"]
    assert metrics["flatness/recovered/trC"] != metrics["flatness/pruned/trC"]
