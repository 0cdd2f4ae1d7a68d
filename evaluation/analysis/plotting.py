"""How the figures look, and how they are kept: SVG and PNG, readable on paper and by colour-blind people."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f")
"""Okabe and Ito's colours, which people with any kind of colour vision can tell apart, without the yellow: paper is white."""

MARKERS = ("o", "s", "D", "^", "P", "X", "v", "<")
"""As many as do not divide evenly into the colours, so that the two together repeat late."""

DPI = 160
LETTERS_PER_INCH = 15
"""Of legends."""

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.5,
    "svg.hashsalt": "secateur",  # the same figure is the same file
}

WORDS = {
    "generalization/final/tok_acc": "final token accuracy",
    "generalization/final/loss": "final loss, nats per token",
    "generalization/final/zeroshot": "final zero-shot mean",
    "generalization/gain/tok_acc": "gain over the control,\ntoken accuracy",
    "generalization/gain/loss": "gain over the control,\nnats per token",
    "generalization/gap/tok_acc": "gap to training text,\ntoken accuracy",
    "generalization/gap/loss": "gap to training text,\nnats per token",
    "generalization/gain_match/tok_acc": "gain over random pruning,\ntoken accuracy",
    "generalization/gap_out_of_domain/loss": "gap, other text,\nnats per token",
    "recovered/zeroshot/mean": "zero-shot mean, recovered",
    "recovered/zeroshot/mean_above_chance": "zero-shot mean where dense\nbeats chance, recovered",
    "recovered/probe/tok_acc": "token accuracy, recovered",
    "stability/recovered_frac/tok_acc": "recovered fraction, last event",
    "flatness/recovered/trC_relative": "gradient second moment,\nrelative",
    "flatness/recovered/trGGN_relative": "trace of the Gauss-Newton\nmatrix, relative",
    "flatness/recovered/topk_sum_relative": "sum of top eigenvalues,\nrelative",
    "flatness/recovered/tic": "TIC proxy",
    "flatness/recovered/epsilon_relative": "epsilon-flatness, relative",
    "flatness/recovered/avg": "average flatness,\nnats per token",
    "algorithmic_stability/aas": "on-average algorithmic\nstability, nats",
    "stability/instability_mean/tok_acc": "mean instability, token accuracy",
    "stability/instability_mean/loss": "mean instability, nats per token",
}


@contextmanager
def axes_grid(columns: int, rows: int = 1, width: float = 3.3, height: float = 3.1, **options: Any) -> Iterator[Any]:
    """Yield a figure of the house's style and its axes, an array (rows * columns,); nothing of the style outlives the block."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        size = (max(5.0, width * columns), height * rows)
        figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
        try:
            yield figure, axes.ravel()
        finally:
            pyplot.close(figure)


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure as `<name>.svg` and `<name>.png`."""
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", dpi=DPI)


def looks(arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour and marker of every arm; the same arms look the same in every figure."""
    return {
        arm: {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
        for index, arm in enumerate(sorted(set(arms)))
    }


def legend_below(figure: Figure, axes: Sequence[Axes], most: int = 40) -> None:
    """Put one legend of what is named in any of the axes under the figure, which grows by it; none above `most` names."""
    named = {label: handle for one in axes for handle, label in zip(*one.get_legend_handles_labels(), strict=True)}
    if not 1 <= len(named) <= most:
        return
    columns = int(figure.get_figwidth() * LETTERS_PER_INCH / (max(map(len, named)) + 6))
    columns = max(1, min(len(named), columns))
    figure.set_figheight(figure.get_figheight() + 0.18 * math.ceil(len(named) / columns))
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=columns, frameon=False)


def words(name: str) -> str:
    """Return what a metric is called in a figure."""
    if name in WORDS:
        return WORDS[name]
    group, _, rest = name.partition("/")
    return f"{group}: {rest.replace('_', ' ').replace('/', ', ')}"


def signed(value: float) -> str:
    """Return a correlation as it is read, with a minus sign that looks like one."""
    return "-" if math.isnan(value) else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def spread_of(values: np.ndarray) -> tuple[float, float]:
    """Return the ends of the values with a twentieth of their range beside them."""
    low, high = float(values.min()), float(values.max())
    margin = (high - low) / 20
    return low - margin, high + margin
