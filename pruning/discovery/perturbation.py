"""What moves what in a decoder layer: outputs are changed one channel at a time, and the inputs of other maps watched.

Letters and constants are those of clamped.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pruning.discovery.clamped import AT, BATCH, STREAM, ClampedModel
from pruning.discovery.modules import Unproved

CHANGED = 1e-7
"""Greater differences are changes. Values are near 0.5 before and -3 after; what does not change repeats to the last bits."""


@dataclass(frozen=True)
class Influence:
    """Which channels of a sink move when a channel of a source does, as pairs (source channel, sink channel)."""

    here: torch.Tensor
    """(pairs, 2) int64: at the token that was changed."""

    later: torch.Tensor
    """(pairs, 2) int64: at tokens after it."""


Influences = Mapping[tuple[str, str], Influence]
"""(source, sink) -> what moves what; pairs without influence are left out."""


def differences(name: str, values: torch.Tensor) -> torch.Tensor:
    """Return where (B, N, C) values differ from those of the first sample."""
    if not values.sum().isfinite():
        raise Unproved(name, "is given numbers that are not finite")
    return (values - values[:1]).abs() > CHANGED


def changes(model: ClampedModel, index: int, moved: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Run one layer and return, as (B, N, C) bool, what differs from the first sample in any round.

    Args:
        model: see clamped.py.
        index: of the layer.
        moved: as `ClampedModel.run_layer` takes it.

    Raises:
        Unproved: a token before the changed one moved, or numbers are not finite.
    """
    found: dict[str, torch.Tensor] = {}
    for outputs in model.rounds:
        with model.giving(outputs):
            seen = model.run_layer(index, moved)
        for name, values in seen.items():
            found[name] = changed = differences(name, values) | found.get(name, torch.tensor(False))
            if name not in model.norms and changed[:, :AT].any():
                raise Unproved(name or f"{model.layers}.{index}", "depends on later tokens: this is no decoder")
    return found


def influences(model: ClampedModel, index: int) -> Influences:
    """Change every output channel of every linear map in a layer, and of its input, and return what moves what.

    Returns:
        (source, sink) -> the pairs of channels. For norms all tokens count as `here`.
    """
    found: dict[tuple[str, str], Influence] = {}
    for source in (STREAM, *model.maps(index)):
        moved = _by_code(model, index, source)
        if moved is None:
            moved = _one_by_one(model, index, source)
        found.update({(source, sink): influence for sink, influence in moved.items()})
    return found


def _by_code(model: ClampedModel, index: int, source: str) -> dict[str, Influence] | None:
    """Return what a source moves if no channel of a sink is moved by more than one of the source's; None otherwise.

    For every bit of the channel's number, the channels that have it are changed together, then those that do not. Where a
    sink's channel answers to exactly one of the two, for every bit, all channels that move it have the same number: they
    are one, and the answers spell it.
    """
    width = model.widths[source]
    bits = torch.arange(max(width - 1, 1).bit_length())
    codes = (torch.arange(width) >> bits[:, None]) % 2 == 1
    answers = _answers(model, index, source, torch.cat((codes, ~codes)))
    found = {}
    for sink, both in answers.items():
        pairs = []
        for answer in both:
            having, lacking = answer.chunk(2)
            columns = answer.any(0).nonzero().flatten()
            if (having == lacking)[:, columns].any():
                return None
            numbers = (having[:, columns].long() << bits[:, None]).sum(0)
            pairs.append(torch.stack((numbers, columns), dim=1))
        found[sink] = Influence(*pairs)
    return found


def _one_by_one(model: ClampedModel, index: int, source: str) -> dict[str, Influence]:
    """Return what a source moves, channel by channel."""
    answers = _answers(model, index, source, torch.eye(model.widths[source], dtype=torch.bool))
    return {sink: Influence(here.nonzero(), later.nonzero()) for sink, (here, later) in answers.items()}


def _answers(
    model: ClampedModel, index: int, source: str, changed: torch.Tensor
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return which channels of the sinks answer to each of many changes.

    Args:
        model: see clamped.py.
        index: of the layer.
        source: a linear map, or STREAM.
        changed: (M, C) bool, the channels of the source that are changed together.

    Returns:
        sink -> (M, C') bool at the token that was changed, and the same at later ones; sinks that do not move are left out.
    """
    found: dict[str, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for part in changed.split(BATCH - 1):
        moved = torch.zeros(BATCH, changed.shape[1], dtype=torch.bool)
        moved[1 : len(part) + 1] = part
        for sink, differs in changes(model, index, {source: moved}).items():
            split = differs.shape[1] if sink in model.norms else AT + 1
            here, later = found.setdefault(sink, ([], []))
            here.append(differs[1 : len(part) + 1, :split].any(1))
            later.append(differs[1 : len(part) + 1, split:].any(1))
    stacked = {sink: (torch.cat(here), torch.cat(later)) for sink, (here, later) in found.items()}
    return {sink: (here, later) for sink, (here, later) in stacked.items() if here.any() or later.any()}
