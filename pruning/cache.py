"""Results that many runs share, kept under the hash of everything they depend on.

An entry carries a checksum of what it holds. One that does not match is computed again, never believed. A lock per entry
lets two processes ask for the same work at once: the second waits and reads what the first has written.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pruning.files import json_text, remove, whole_folder, write_json

log = logging.getLogger(__name__)

FORMAT = 1
"""Raised when the meaning of a cached value changes, so that older entries are not read."""

LIBRARIES = ("torch", "transformers", "peft", "lm-eval")
MANIFEST = "manifest.json"


def digest(value: Any) -> str:
    """Return 20 hexadecimal digits that name a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:20]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Cache:
    """A folder of results addressed by their inputs: `<root>/<kind>/<digest>`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def json(self, kind: str, inputs: dict[str, Any], compute: Callable[[], Any]) -> Any:
        """Return the JSON value computed from `inputs` before, or compute and keep it."""
        from filelock import FileLock

        path = self._place(kind, inputs).with_suffix(".json")
        with FileLock(f"{path}.lock"):
            entry = self._read_json(path)
            if entry is None:
                value = json.loads(json_text(compute()))
                write_json(path, {"inputs": inputs_for_display(inputs), "digest": digest(value), "value": value})
                return value
            log.debug("%s: read from the cache", kind)
            return entry["value"]

    def folder(self, kind: str, inputs: dict[str, Any], build: Callable[[Path], None]) -> Path:
        """Return the folder that `build` filled for these inputs before, or have it filled now."""
        from filelock import FileLock

        path = self._place(kind, inputs)
        with FileLock(f"{path}.lock"):
            if folder_is_whole(path):
                log.debug("%s: read from the cache", kind)
                return path
            for leftover in path.parent.glob(f".{path.name}.*"):  # of a process that was killed
                remove(leftover)
            with whole_folder(path) as temporary:
                build(temporary)
                files = sorted(p for p in temporary.rglob("*") if p.is_file())
                sums = {str(p.relative_to(temporary)): file_digest(p) for p in files}
                write_json(temporary / MANIFEST, sums)
        return path

    def has_folder(self, kind: str, inputs: dict[str, Any]) -> bool:
        """Say whether `folder` would find these inputs' folder, whole or damaged."""
        return self._place(kind, inputs).exists()

    def unfinished(self, kind: str, inputs: dict[str, Any]) -> Path:
        """Return where work on a folder's contents may be kept while it lasts, to go on from after a kill.

        Only what `build` does is alone there. Who calls `folder` removes it afterwards.
        """
        return self._place(kind, inputs).with_suffix(".unfinished")

    def _place(self, kind: str, inputs: dict[str, Any]) -> Path:
        versions = {name: version(name) for name in LIBRARIES}
        folder = self.root / kind
        folder.mkdir(parents=True, exist_ok=True)
        return folder / digest({"inputs": inputs, "versions": versions, "format": FORMAT})

    @staticmethod
    def _read_json(path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            if entry["digest"] == digest(entry["value"]):
                return entry
        except (ValueError, KeyError, TypeError):
            pass
        log.warning("cache entry %s is damaged: computing it again", path)
        return None


def inputs_for_display(inputs: dict[str, Any]) -> Any:
    """Return `inputs` as plain JSON, for a person who opens the entry."""
    return json.loads(json.dumps(inputs, default=str))


def folder_is_whole(path: Path) -> bool:
    """Say whether every file that the folder's manifest names is there, unchanged."""
    if not path.exists():
        return False
    try:
        sums = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if all(file_digest(path / name) == checksum for name, checksum in sums.items()):
            return True
    except (OSError, ValueError, AttributeError):
        pass
    log.warning("cache entry %s is damaged: making it again", path)
    return False
