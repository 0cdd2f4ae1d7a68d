"""The model that a run leaves, scored by lm-eval's own command as README.md shows it: the run's scores, item by item."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.test_zeroshot import made, write
from tests.test_run import folders, launch, result_of

TASKS = ("piqa", "openbookqa", "lambada_openai")
LIMIT = 8


@pytest.mark.slow
def test_the_saved_model_has_the_runs_scores_in_lm_evals_own_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    for task in TASKS:
        write(tmp_path / "items" / f"{task}.jsonl", made(task))
    scored = [f"evaluation.tasks=[{','.join(TASKS)}]", f"evaluation.data_dir={tmp_path / 'items'}"]
    launch(tmp_path / "runs", *scored, f"evaluation.items={LIMIT}", "recovery.learning_rate=1e-2", "tracking=none")
    (folder,) = folders(tmp_path / "runs").values()
    assert (folder / "model" / "modeling_pruned.py").exists()  # widths are unequal

    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", ",".join(TASKS), "--limit", str(LIMIT)]
    command += ["--model_args", f"pretrained={folder / 'model'},trust_remote_code=True"]
    command += ["--include_path", str(tmp_path / "runs" / ".cache" / "tasks"), "--device", "cpu"]
    command += ["--log_samples", "--output_path", str(tmp_path / "out")]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=600)

    (found,) = (tmp_path / "out").rglob("results*.json")
    metrics = result_of(folder)["metrics"]
    for task in TASKS:
        theirs = json.loads(found.read_text())["results"][task]
        assert theirs["acc,none"] == pytest.approx(metrics[f"recovered/zeroshot/{task}/acc"])
        ours = json.loads((folder / "zeroshot" / f"{task}.json").read_text())
        nats = [outcome["loglikelihoods"] for outcome in ours["recovered"]["outcomes"]]
        (samples,) = (tmp_path / "out").rglob(f"samples_{task}*.jsonl")
        rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
        assert len(rows) == LIMIT
        for row, wanted in zip(rows, nats, strict=True):
            assert [float(response[0]) for response in row["filtered_resps"]] == pytest.approx(wanted, abs=1e-3)
        assert nats != [outcome["loglikelihoods"] for outcome in ours["pruned"]["outcomes"]]
