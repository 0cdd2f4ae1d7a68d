"""Statistics across the finished runs of a study: `python -m evaluation.analyse runs/<study>`.

Prints correlations with their intervals, and the largest ratio that keeps quality; writes analysis.json and figures to
runs/<study>/analysis/.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.files import write_json

if TYPE_CHECKING:
    from evaluation.analysis.study_analysis import Choice, StudyAnalysis


def analyse(folders: Sequence[Path], choice: Choice, out: Path | None = None) -> tuple[StudyAnalysis, Path]:
    """Analyse the runs under `folders` and write analysis.json and the figures.

    Args:
        folders: studies or run folders.
        choice: the pairs and the settings.
        out: where to write; None for analysis/ in the folder (of several folders: in the one they share).

    Returns:
        The analysis, and the folder that was written.

    Raises:
        ValueError: there is no finished run, or a metric was named that none of them has.
    """
    from evaluation.analysis.figures import write_figures
    from evaluation.analysis.observations import read_study
    from evaluation.analysis.study_analysis import analyse_study

    analysis = analyse_study(read_study(folders), choice)
    out = out or Path(os.path.commonpath([folder.absolute() for folder in folders])) / "analysis"
    figures = write_figures(analysis, out / "figures")
    write_json(out / "analysis.json", analysis.as_json() | {"figures": figures})
    return analysis, out


def print_analysis(analysis: StudyAnalysis) -> None:
    """Print the tables, at most 100 columns wide."""
    from rich.console import Console

    from evaluation.analysis.curve_tables import print_curves
    from evaluation.analysis.tables import WIDTH, print_associations, print_by_rate, print_study

    console = Console(width=WIDTH)
    print_study(analysis.study, console)
    for family in filter(None, (analysis.pairs, analysis.mechanisms)):
        print_associations(family, console)
    print_by_rate(analysis.by_rate, console)
    for curves in filter(None, analysis.curves.values()):
        print_curves(curves, console)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.analyse", description="Statistics across the finished runs of a study."
    )
    parser.add_argument("folders", type=Path, nargs="+", help="studies (runs/<study>) or run folders")
    parser.add_argument("--x", nargs="+", default=[], metavar="METRIC", help="against what (default: mean instability)")
    parser.add_argument("--y", nargs="+", default=[], metavar="METRIC", help="what is tested; * stands for anything")
    parser.add_argument("--given", nargs="*", metavar="METRIC", help="held constant in the partial correlation")
    parser.add_argument("--quality", nargs="+", default=[], metavar="METRIC", help="accuracies of the ratio curves")
    parser.add_argument("--points", type=float, default=1.0, help="how far below dense is near enough (default: 1)")
    parser.add_argument("--confidence", type=float, default=0.95, help="of all intervals (default: 0.95)")
    parser.add_argument("--resamples", type=int, default=2000, help="of every bootstrap (default: 2000)")
    parser.add_argument("--out", type=Path, help="folder to write (default: analysis/ in the study)")
    parser.add_argument("--wandb", action="store_true", help="log tables and figures as a W&B run of type analysis")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Analyse what the command line names; return the exit code: 0, or 1 after a message about what is wrong."""
    asked = parse(arguments)
    from evaluation.analysis.estimate import Settings
    from evaluation.analysis.study_analysis import GIVEN, Choice

    try:
        given = GIVEN if asked.given is None else tuple(asked.given)
        settings = Settings(asked.confidence, asked.resamples, given)
        choice = Choice(asked.x, asked.y, asked.quality, asked.points, settings)
        analysis, out = analyse(asked.folders, choice, asked.out)
        print_analysis(analysis)
        if asked.wandb:
            from evaluation.analysis.publish import send_analysis

            send_analysis(analysis, out, sys.argv[1:] if arguments is None else arguments)
    except (ValueError, OSError) as error:
        print(f"cannot analyse: {error}", file=sys.stderr)
        return 1
    print(f"{out}: analysis.json and figures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
