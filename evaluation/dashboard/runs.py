"""What is known of every run under a folder, finished or not.

`result.json` says everything about a finished run. Of the others, `status.json` says how far they came, Hydra's files what
they were asked to do, and the end of `run.log` what happened.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evaluation.result import SCHEMA, RunResult

LOG_BYTES = 6000
"""How much of the end of a log is shown."""


@dataclass(frozen=True)
class RunRecord:
    """One run as its folder shows it. Only what a result says is filled in for a finished one alone."""

    folder: str
    name: str
    study: str
    state: str
    """done; failed; running; stopped: it was running, but no process holds it any more; pending: it has not begun;
    unreadable: there is a result, but not one that this version can read."""

    stage: str | None = None
    error: str | None = None
    started: str | None = None
    updated: str | None = None
    choices: dict[str, str] = field(default_factory=dict)
    """Configuration group -> chosen option."""

    config: dict[str, Any] = field(default_factory=dict)
    """Dotted key -> value."""

    metrics: dict[str, float | None] = field(default_factory=dict)
    events: list[dict[str, float | None]] = field(default_factory=list)
    widths: list[dict[str, int]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    log: str = ""


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """Return the run folders that `folders` are or hold, at most two levels down, each once.

    Raises:
        ValueError: one of the folders is not there.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: there is no such folder; name a study (runs/<study>) or a run's folder")
        for path in _runs_under(folder, levels=2):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def read_run(folder: Path) -> RunRecord:
    """Return what the folder of a run shows."""
    found = read_state(folder)
    if found.state == "done":
        return found
    config = flat(_read_yaml(folder / ".hydra" / "config.yaml"))
    return replace(found, choices=_choices(folder), config=config, log=_tail(folder / "run.log"))


def read_state(folder: Path) -> RunRecord:
    """Return what the folder of a run shows soon: of an unfinished one neither its options nor its log."""
    status = _read_json(folder / "status.json")
    about: dict[str, Any] = {"folder": str(folder), "started": status.get("started"), "updated": status.get("updated")}
    result = RunResult.read(folder / "result.json")
    if result is not None and _well_formed(result):
        known = {name: getattr(result, name) for name in ("name", "study", "choices", "metrics", "events", "widths")}
        known |= {"environment": result.environment, "timings": result.timings, "config": flat(result.config)}
        return RunRecord(**about, **known, state="done")
    about |= {"name": folder.resolve().name, "study": folder.resolve().parent.name}
    about |= {"stage": status.get("stage"), "error": status.get("error")}
    if (folder / "result.json").exists():
        about["error"] = _why_unreadable(folder / "result.json")
        return RunRecord(**about, state="unreadable")
    return RunRecord(**about, state=_state(folder, status.get("state")))


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration with dotted keys; lists and empty dictionaries are values."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _runs_under(folder: Path, levels: int) -> list[Path]:
    if any((folder / name).exists() for name in ("result.json", "status.json", ".hydra")):
        return [folder]
    if not levels:
        return []
    children = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [run for child in children for run in _runs_under(child, levels - 1)]


def _state(folder: Path, said: Any) -> str:
    if said is None:
        return "pending"
    if said == "running" and _is_held(folder / ".lock"):
        return "running"
    return "failed" if said == "failed" else "stopped"


def _is_held(lock: Path) -> bool:
    """Say whether a process works on the run. One that may not be asked about is believed to be."""
    from filelock import FileLock, Timeout

    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except (Timeout, OSError):
        return True


def _well_formed(result: RunResult) -> bool:
    tables = (result.choices, result.metrics, result.config, result.environment, result.timings)
    rows = (result.events, result.widths)
    return all(isinstance(table, dict) for table in tables) and all(
        isinstance(row, list) and all(isinstance(item, dict) for item in row) for row in rows
    )


def _why_unreadable(path: Path) -> str:
    schema = _read_json(path).get("schema")
    what = "is damaged" if schema in (None, SCHEMA) else f"has schema {schema}, and this version reads {SCHEMA}"
    return f"result.json {what}: run it again with force=true"


def _choices(folder: Path) -> dict[str, str]:
    hydra = _read_yaml(folder / ".hydra" / "hydra.yaml").get("hydra") or {}
    choices = (hydra.get("runtime") or {}).get("choices") or {}
    return {group: str(option) for group, option in choices.items() if not group.startswith("hydra/")}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return text if size <= LOG_BYTES else text.partition("\n")[2]
