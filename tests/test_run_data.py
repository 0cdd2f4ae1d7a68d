"""Runs on text of their own: a mixture, and text that is also measured on."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.test_run import folders, launch, result_of


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    rows = [{"text": f"Row {i} of {i * i}. " + f"The {i}th boat carried {i * 7} bags of corn. " * 8} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def refused(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    done = launch(tmp_path / "runs", "tracking=none", *options, check=False)
    assert done.returncode == 1
    assert "dense ..." not in done.stdout
    assert "Traceback" not in done.stderr
    return done


def test_text_that_is_measured_on_is_refused_before_any_work(tmp_path: Path, text: Path) -> None:
    done = refused(tmp_path, "data=local", f"data.path={text}", f"stability.text={text}")
    assert f"stability.text={text}: 90.0% of its 13-word sequences" in done.stderr


def test_a_mixture_goes_through_a_run_and_its_figures_are_marked(tmp_path: Path, text: Path) -> None:
    parts = f"+data.parts={{mine: {{path: {text}}}, passages: {{source: bundled, weight: 3}}}}"
    texts = f"+evaluation.texts={{mine: {text}, books: passages, encyclopedia: wikipedia}}"
    options = ["data.allow_tested=documents", "evaluation.windows=[32]", "evaluation.text_tokens=128", "tracking=none"]
    printed = launch(tmp_path / "runs", "data=mixture", parts, texts, *options).stdout
    (folder,) = folders(tmp_path / "runs").values()
    metrics = result_of(folder)["metrics"]
    assert metrics["text/mine/overlap"] == pytest.approx(0.9, abs=0.01)
    found = {name: metrics[f"{name}/in_domain"] + metrics[f"{name}/contaminated"] for name in ("text/books", "probe")}
    assert found == {"text/books": 1, "probe": 1}
    assert metrics["text/encyclopedia/in_domain"] == 0
    for table in (printed, (folder / "model" / "README.md").read_text(encoding="utf-8")):
        assert "perplexity, mine@32 (contaminated)" in table
        assert "perplexity, books@32 (in domain)" in table
        assert "perplexity, encyclopedia@32 (" not in table
