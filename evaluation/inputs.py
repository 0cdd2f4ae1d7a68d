"""What the files and folders held that a configuration names. Its key says where they are, not what is in them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pruning.cache import digest, file_digest

NAMED_BY = ("path", "data_dir", "text", "texts", "out_of_domain")
"""Keys under which a value may be a file or a folder; others that happen to be called like one are not looked at."""

WHOLE, END = 64 * 2**20, 2**20
"""Of a file larger than the first, only its size and its first and last `END` bytes are read."""


def input_digests(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of every file and folder that a configuration names, by its key, as "data.path"."""
    return {key: _content(Path(value)) for key, value in _named(config) if Path(value).exists()}


def changed_inputs(config: Mapping[str, Any], before: Mapping[str, str]) -> list[str]:
    """Return the keys of `config` whose file or folder has another content than `before`, what `input_digests` told then."""
    return [key for key, now in input_digests(config).items() if before.get(key, now) != now]


def _named(values: Mapping[str, Any], prefix: str = "", *, named: bool = False) -> Iterator[tuple[str, str]]:
    """Yield (key, value) of everything that may be a file or a folder."""
    for name, value in values.items():
        fits = named or name in NAMED_BY
        if isinstance(value, Mapping):
            yield from _named(value, f"{prefix}{name}.", named=fits)
        elif fits and isinstance(value, str):
            yield prefix + name, value


def _content(path: Path) -> str:
    if path.is_dir():
        return digest(
            {str(each.relative_to(path)): _content(each) for each in sorted(path.rglob("*")) if each.is_file()}
        )
    if (size := path.stat().st_size) <= WHOLE:
        return file_digest(path)
    with path.open("rb") as file:
        ends = hashlib.sha256(str(size).encode() + file.read(END))
        file.seek(-END, os.SEEK_END)
        ends.update(file.read())
    return ends.hexdigest()
