"""The linear maps that read the activations of units: which groups have one, and what goes in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from pruning.layout import output_dim
from pruning.units import UnitGroup


def check_readers(estimator: str, groups: Mapping[str, UnitGroup], *, depth: bool) -> None:
    """Raise unless the units of every group are read by linear maps that can be watched.

    Args:
        estimator: its name, for the message.
        groups: what is to be scored.
        depth: whether the estimator can score depth groups, by their outputs.

    Raises:
        ValueError: naming the first group that cannot be scored.
    """
    for name, group in groups.items():
        if not group.readers or (group.kind.is_depth and not depth):
            reason = "whole parts of a layer" if group.readers else "units that no single linear map reads"
            raise ValueError(
                f"importance={estimator}: cannot score {name}, because {group.kind.value} means {reason}; use "
                f"importance=taylor, l1, l2 or random, or leave {group.kind.value} out of pruning.structures"
            )


def input_positions(group: UnitGroup) -> torch.Tensor:
    """Return where the units of a width group lie among their reader's inputs, (U, C)."""
    reads = group.slices[-1]
    assert reads.parameter == f"{group.readers[0]}.weight", f"{group.name}: the last slice is not its reader's"
    return reads.indices


def weight_of(model: PreTrainedModel, reader: str) -> torch.Tensor:
    """Return the weight of a linear map as (outputs, inputs), however it is stored."""
    linear = model.get_submodule(reader)
    return model.get_parameter(f"{reader}.weight").detach().movedim(output_dim(linear), 0)


def by_sample(values: torch.Tensor, batch_size: int, reader: str) -> torch.Tensor:
    """Return a linear map's inputs or outputs as (samples, tokens, channels); some families flatten the first two.

    Raises:
        ValueError: the samples do not come first.
    """
    if values.ndim == 2:
        return values.unflatten(0, (batch_size, -1))
    if values.ndim != 3 or values.shape[0] != batch_size:
        raise ValueError(
            f"{reader} gets activations of shape {tuple(values.shape)}, not (samples, tokens, channels) with {batch_size} "
            "samples: it cannot be scored by importance=unit_mask; use importance=taylor"
        )
    return values
