"""The page: one HTML file with the figures, the scripts and the style in it.

Its content security policy lets the browser load nothing and run only the scripts that are written here, so a name or an
error text with HTML in it can do nothing, wherever it came from.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evaluation.dashboard.comparison import arms, facets, measures, tasks
from evaluation.dashboard.runs import RunRecord, find_runs, read_run
from pruning.files import json_text, write_text

HERE = Path(__file__).parent
SCRIPTS = (
    "statistics.js",
    "data.js",
    "elements.js",
    "theme.js",
    "charts/chart.js",
    "charts/ratio.js",
    "charts/cost.js",
    "charts/tasks.js",
    "charts/stability.js",
    "charts/correlations.js",
    "charts/events.js",
    "charts/parallel.js",
    "charts/widths.js",
    "details.js",
    "table.js",
    "filters.js",
    "main.js",
)
"""In the order in which they run; the charts stand on the page in this order too."""

KINDS = {"bar": 0, "heatmap": 2}
"""Kinds of traces that the charts draw, beside scatter, which is always there -> their place in Plotly's list of all."""


def write_dashboard(study: Path | Sequence[Path], out: Path | None = None) -> Path:
    """Write the page that compares the runs of a study, whatever state they are in.

    Args:
        study: the folder of a study or of a run, or several of them.
        out: the file; None for dashboard.html in the folder (of several folders: in the one they share).

    Returns:
        The file that was written.

    Raises:
        ValueError: a folder is not there.
    """
    folders = [study] if isinstance(study, Path) else list(study)
    runs = [read_run(folder) for folder in find_runs(folders)]
    title = ", ".join(dict.fromkeys(folder.resolve().name for folder in folders))
    out = out or Path(os.path.commonpath([folder.absolute() for folder in folders])) / "dashboard.html"
    write_text(out, page(describe(title, runs)))
    return out


def describe(title: str, runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Return everything the scripts draw from."""
    kinds, values = facets(runs)
    rows = [
        asdict(run) | {"facets": value, "arm": arm} for run, value, arm in zip(runs, values, arms(runs), strict=True)
    ]
    return {
        "title": title,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "facets": kinds,
        "measures": measures(runs),
        "tasks": tasks(runs),
        "runs": rows,
    }


def page(data: dict[str, Any]) -> str:
    """Return the page that shows `data`."""
    library, script = plotly(), "\n".join(_read(name) for name in SCRIPTS)
    parts = {
        "title": html.escape(data["title"]),
        "policy": f"default-src 'none'; script-src {_digest(script)} {_digest(library)}; "
        "style-src 'unsafe-inline'; img-src data: blob:",
        "style": _read("page.css"),
        "data": embedded(data),
        "library": library,
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("page.html"))


def plotly() -> str:
    """Return the Plotly library, in which only KINDS are registered: making all kinds takes longer than everything else."""
    from plotly.offline import get_plotlyjs

    library = get_plotlyjs()
    found = re.search(r"\.register\(\[((?:\w+\(\),?){40,})\]\)", library)
    if found is None:  # another version, which will do as it is
        return library
    registered = found[1].split(",")
    kept = ",".join(registered[place] for place in KINDS.values())
    return library[: found.start(1)] + kept + library[found.end(1) :]


def embedded(data: Any) -> str:
    """Return `data` as JSON that can stand in a script element: nothing in it ends the element or begins a comment."""
    text = json_text(data)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """Return the source expression that allows exactly this inline script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
