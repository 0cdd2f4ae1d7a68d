"""What a search is told of a finished run."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence

DEFAULT = "recovered/zeroshot/mean"


def objectives(metrics: Mapping[str, float | None], names: Sequence[str] | None) -> float | tuple[float, ...] | None:
    """Return the figures that a search optimises.

    Args:
        metrics: those of a finished run.
        names: metrics in the order of the search's directions; None for the zero-shot mean after recovery, where there is one.

    Returns:
        One figure for one name, a tuple for several.

    Raises:
        ValueError: a metric was not measured, or has no finite value.
    """
    if names is None:
        return metrics.get(DEFAULT)
    found = [metrics.get(name) for name in names]
    for name, value in zip(names, found, strict=True):
        if value is None or not math.isfinite(value):
            near = difflib.get_close_matches(name, metrics, n=3, cutoff=0.5)
            hint = f" Measured were {', '.join(near)}." if near else ""
            raise ValueError(f"objectives={list(names)}: this run has no figure {name!r}.{hint} See docs/metrics.md.")
    values = tuple(float(value) for value in found if value is not None)
    return values[0] if len(values) == 1 else values
