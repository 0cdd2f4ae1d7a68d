"""Generalization of a run: how good the recovered model is in the end, beside what it came from, its controls, and its text.

Everything is measured at the fixed last step of the recovery; nothing is chosen by a figure on tested text. Source: the
measures of Bartoldson et al., NeurIPS 2020 (test accuracy, and its gap to training accuracy), for a model that is already
trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from evaluation.event import point_means, stability_percent
from evaluation.probe import Probe
from evaluation.stability import StabilityConfig
from evaluation.statistics import resampled_means, stratified_error, with_intervals

if TYPE_CHECKING:
    import torch

    from evaluation.measure import Evaluator
    from evaluation.perplexity import TextScore
    from pruning.run_texts import RunTexts

TRAIN = "train"
"""Name of the fixed slice of the recovery text among the texts that are scored."""

GAPS = {"heldout": "gap", "out_of_domain": "gap_out_of_domain"}
"""Held-out text -> what its gap to the training text is called."""


def generalization_summary(
    final: Probe, dense: Probe, control: Probe | None, random: Probe | None, config: StabilityConfig
) -> dict[str, float]:
    """Return `generalization/{final,retained,gain,gain_match}/*` with paired bootstrap intervals; above 0 or 1 = better.

    Args:
        final: probe of the recovered model.
        dense: of the model as it was loaded.
        control: of the unpruned model given the same recovery; None without.
        random: of the model pruned at random in one event, to the same ratio, given the same recovery; None without.
        config: confidence and number of resamples.
    """
    found = {f"final/{name}": value for name, value in final.measures().items()}
    found |= compared("retained", retained, final, dense, config)
    for kind, reference in (("gain", control), ("gain_match", random)):
        if reference is not None:
            found |= compared(kind, gain, final, reference, config)
    return {f"generalization/{name}": value for name, value in found.items()}


def compared(
    kind: str, figure: Callable[[str, Any, Any], Any], final: Probe, reference: Probe, config: StabilityConfig
) -> dict[str, float]:
    """Return `<kind>/<measure>` for what both models were measured on: `figure` of the measure, the reference, the final."""
    ours, theirs = final.observations(), reference.observations()
    point, resampled = (
        {f"{kind}/{name}": figure(name, *means([theirs[name], ours[name]])) for name in ours if name in theirs}
        for means in (point_means, partial(resampled_means, resamples=config.resamples))
    )
    return with_intervals(point, resampled, config.confidence)


def gain(name: str, reference: Any, final: Any) -> Any:
    """Return by how much the final model is better: accuracies final - reference, loss reference - final."""
    return reference - final if name == "loss" else final - reference


def retained(name: str, dense: Any, final: Any) -> Any:
    """Return final / dense, of the loss the same of one over the perplexity: exp(dense - final)."""
    return stability_percent(name, dense, final) / 100


def gap_summary(texts: Mapping[str, TextScore]) -> dict[str, float]:
    """Return `generalization/<text>/*`, and the gaps between held-out and training text; above 0 = over-fitted.

    gap: loss held-out - train, accuracy train - held-out; of text of the data's own source, gap_out_of_domain of other text.
    Their standard errors are over the blocks, which are different ones: the root of the sum of both squares.

    Args:
        texts: scores of the recovered model: `train`, and where there are such texts `heldout` and `out_of_domain`.
    """
    found: dict[str, float] = {}
    errors = {}
    for text, score in texts.items():
        found |= {f"{text}/loss": score.loss, f"{text}/tok_acc": score.token_accuracy}
        errors[text] = {name: stratified_error(strata) for name, strata in Probe(score).observations().items()}
    found |= gaps(found)
    for text, label in GAPS.items():
        if text in texts and TRAIN in texts:
            for name, error in errors[text].items():
                found[f"{label}/{name}_stderr"] = math.hypot(error, errors[TRAIN][name])
    return {f"generalization/{name}": value for name, value in found.items()}


def gaps(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the gaps of `<text>/loss` and `<text>/tok_acc`, at whatever moment they were measured."""
    found = {}
    for text, label in GAPS.items():
        if f"{text}/loss" in scores and f"{TRAIN}/loss" in scores:
            found[f"{label}/loss"] = scores[f"{text}/loss"] - scores[f"{TRAIN}/loss"]
            found[f"{label}/tok_acc"] = scores[f"{TRAIN}/tok_acc"] - scores[f"{text}/tok_acc"]
    return found


def out_of_domain_source(asked: str | None, texts: Mapping[str, str], nearness: Mapping[str, float]) -> str | None:
    """Return the text of `stability.out_of_domain`: the one asked for, or the first tested one of another corpus, or None.

    Args:
        asked: a bundled corpus or a file; None: to be found.
        texts: `evaluation.texts`: name -> bundled corpus or file.
        nearness: `text/<name>/in_domain` of each (contamination.py).
    """
    others = [source for name, source in texts.items() if not nearness[f"text/{name}/in_domain"]]
    return asked or next(iter(others), None)


def watched_texts(texts: RunTexts, evaluator: Evaluator, other: str | None) -> dict[str, torch.Tensor]:
    """Return the texts (N, T) that tell how a recovery goes: `probe`, and with recovery `train`, `heldout`, `out_of_domain`.

    Args:
        texts: of the run.
        evaluator: has the probe text.
        other: `out_of_domain_source`; as many blocks of it are taken as of held-out text, spread evenly over it.
    """
    found = {"probe": evaluator.probe_blocks}
    if texts.train_slice is None or texts.heldout is None:
        return found
    found |= {TRAIN: texts.train_slice, "heldout": texts.heldout}
    if other is not None:
        count, length = texts.heldout.shape
        found["out_of_domain"] = evaluator.windows(other, length, count, "stability.out_of_domain")
    return found
