"""Everything that is computed of a study: which pairs are tested, and what comes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from evaluation.analysis.association import Association, associate_all, associate_by_rate
from evaluation.analysis.estimate import Settings
from evaluation.analysis.observations import RATIO, TAIL_STEPS, Study, matching, present
from evaluation.analysis.ratio_curve import NEVER, RatioCurve, ratio_curves

SCHEMA = 1
"""Of analysis.json. Raised when the meaning of a field changes."""

INSTABILITY = "stability/instability_mean/tok_acc"
FINAL, GAIN, GAP = "generalization/final/tok_acc", "generalization/gain/tok_acc", "generalization/gap/loss"
RECOVERED = "stability/recovered_frac/tok_acc"

Y = (
    FINAL,
    "generalization/final/loss",
    GAIN,
    "generalization/gain/loss",
    "generalization/gain_match/tok_acc",
    GAP,
    "generalization/gap/tok_acc",
    "generalization/gap_out_of_domain/loss",
    RECOVERED,
)
"""What is tested against instability when nothing else is named. Few, since every further pair costs all others power."""

MECHANISMS = (
    *(f"flatness/recovered/{name}" for name in ("trC_relative", "trGGN_relative", "topk_sum_relative", "tic")),
    "flatness/recovered/epsilon_relative",
    "flatness/recovered/avg",
    "algorithmic_stability/aas",
)
"""By what instability is said to help: flatness, relative to the size of the weights, and the stability of the training."""

QUALITY = ("recovered/zeroshot/mean", "recovered/zeroshot/mean_above_chance", "recovered/probe/tok_acc")
GIVEN = (RATIO, TAIL_STEPS)


@dataclass(frozen=True)
class Choice:
    """What the command line names; empty for the usual."""

    x: Sequence[str] = ()
    y: Sequence[str] = ()
    quality: Sequence[str] = ()
    points: float = 1.0
    """Tolerance of the largest ratio, in hundredths of accuracy."""

    settings: Settings = field(default_factory=lambda: Settings(given=GIVEN))

    def __post_init__(self) -> None:
        settings = self.settings
        if not 0 < settings.confidence < 1:
            raise ValueError(f"--confidence {settings.confidence}: must be in (0, 1), such as 0.95")
        if settings.resamples < 100:
            raise ValueError(f"--resamples {settings.resamples}: must be at least 100, or intervals are noise")
        if not self.points > 0:
            raise ValueError(f"--points {self.points}: must be above 0; 1 is one hundredth of accuracy")
        for name in self.quality:
            if "/ppl/" in name or "/bits_per_byte/" in name or name.endswith("/loss"):
                raise ValueError(f"--quality {name}: must be an accuracy, of which points below dense can be counted")


@dataclass(frozen=True)
class StudyAnalysis:
    """What the tables and the figures show."""

    study: Study
    settings: Settings
    pairs: list[Association]
    """The tested pairs, whose p-values are corrected together."""

    mechanisms: list[Association]
    """Flatness and algorithmic stability against instability, a family of its own."""

    by_rate: dict[str, list[tuple[float, Association]]]
    """y -> the association with the first x within each rate; empty when all runs have one rate."""

    curves: dict[str, list[RatioCurve]]
    """Measure of quality -> the curves of all options."""

    def tested(self) -> list[Association]:
        """Return the pairs of both families."""
        return [*self.pairs, *self.mechanisms]

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values; a largest ratio that was not reached is null with `reached` false."""
        study = self.study
        return {
            "schema": SCHEMA,
            "study": study.title,
            "runs": [
                {"name": run.name, "folder": run.folder, "arm": arm}
                for run, arm in zip(study.runs, study.arms, strict=True)
            ],
            "left_out": dict(study.left_out),
            "settings": asdict(self.settings),
            "pairs": [asdict(one) for one in self.pairs],
            "mechanisms": [asdict(one) for one in self.mechanisms],
            "by_rate": {
                y: [{"percent_per_event": rate, **asdict(one)} for rate, one in rows]
                for y, rows in self.by_rate.items()
            },
            "curves": {
                name: [asdict(curve) | {"reached": curve.largest != NEVER} for curve in curves]
                for name, curves in self.curves.items()
            },
        }


def analyse_study(study: Study, choice: Choice) -> StudyAnalysis:
    """Compute everything of a study.

    Raises:
        ValueError: a metric was named that no run has.
    """
    xs = matching(study, choice.x, "--x") if choice.x else [INSTABILITY]
    ys = matching(study, choice.y, "--y") if choice.y else present(study, Y)
    qualities = matching(study, choice.quality, "--quality") if choice.quality else present(study, QUALITY)
    matching(study, choice.settings.given, "--given")
    settings = choice.settings
    mechanisms = [] if choice.y else present(study, MECHANISMS)
    rates = study.rates()
    several_rates = len(set(rates[rates == rates])) > 1
    return StudyAnalysis(
        study=study,
        settings=settings,
        pairs=associate_all(study, [(x, y) for x in xs for y in ys], settings),
        mechanisms=associate_all(study, [(xs[0], y) for y in mechanisms], settings),
        by_rate={y: associate_by_rate(study, xs[0], y, settings) for y in ys} if several_rates else {},
        curves={name: ratio_curves(study, name, choice.points, settings) for name in qualities},
    )
