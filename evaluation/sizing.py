"""How unstable an event would be, for the schedule that sizes its events by that."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from transformers import PreTrainedModel

from evaluation.event import instability
from evaluation.measure import Evaluator
from pruning.rounds import Chooser
from pruning.schedule import Instability
from pruning.units import UnitGroup

log = logging.getLogger(__name__)


def trial_instability(
    evaluator: Evaluator,
    chooser: Chooser,
    model: PreTrainedModel,
    groups: Mapping[str, UnitGroup],
    before: float,
    report: Callable[[dict[str, float]], None],
) -> Instability:
    """Return what measures, on the probe text, the instability that an event to a cumulative ratio would have.

    Args:
        evaluator: of the run.
        chooser: chooses the units.
        model: as it is before the event, and after every trial.
        groups: its groups that may be cut.
        before: cumulative ratio of the event before.
        report: receives every trial.
    """

    def accuracy() -> float:
        return evaluator.snapshot(model).text(evaluator.probe_blocks).token_accuracy

    tried = chooser.tried(model, groups, before, accuracy)

    def measure(ratio: float) -> float:
        found = float(instability("tok_acc", accuracy(), tried(ratio)))
        log.info("  an event to a ratio of %.4f would have an instability of %.4f", ratio, found)
        report({"trial/ratio": ratio, "trial/instability": found})
        return found

    return measure
