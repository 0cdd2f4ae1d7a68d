"""Moments of the inputs of the linear maps that read units, kept in the cache.

One pass over the calibration text serves every ratio, allocation and compensation of a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from pruning.cache import Cache, digest
from pruning.importance.activations import InputMoments as StreamedMoments
from pruning.importance.activations import stream_input_moments
from pruning.importance.readers import weight_of
from pruning.importance.saliency import in_rounds
from pruning.model import fingerprint
from pruning.units import PruningPlan, UnitGroup, removed_places, removed_units


@dataclass(frozen=True)
class InputMoments:
    """Moments of the inputs x of one linear map with I inputs, over all tokens of all samples."""

    mean: torch.Tensor
    """E[x], (I,) float64."""

    second: torch.Tensor
    """E[x x^T], (I, I) float32."""


@dataclass(frozen=True)
class StoredMoments:
    """The moments of many linear maps, one file each; only the one asked for is read."""

    folder: Path

    def of(self, reader: str) -> InputMoments:
        """Return the moments of one linear map's inputs."""
        return InputMoments(**load_file(self.folder / f"{reader}.safetensors"))


def input_moments(
    model: PreTrainedModel,
    groups: Mapping[str, UnitGroup],
    samples: torch.Tensor,
    cache: Cache,
    batch_size: int | None = None,
    layers_at_once: int | None = None,
) -> StoredMoments:
    """Return the moments of the inputs of every linear map that reads units of `groups`, computed or from the cache.

    Args:
        model: in evaluation mode; bit-identical afterwards.
        groups: those that may be cut.
        samples: token ids, (N, T).
        cache: where they are kept.
        batch_size: samples run at once; None for all.
        layers_at_once: layers whose moments are held at the same time; None for all.
    """
    readers = list(dict.fromkeys(readers_of(groups).values()))
    inputs = {"model": fingerprint(model), "readers": readers, "samples": digest(samples.tolist())}

    def build(folder: Path) -> None:
        def keep(reader: str, moments: StreamedMoments) -> None:
            assert moments.second is not None
            tensors = {"mean": moments.mean.cpu(), "second": moments.second.float().cpu()}
            save_file(tensors, folder / f"{reader}.safetensors")

        for chosen in in_rounds(readers, layers_at_once):
            stream_input_moments(model, chosen, samples, keep, batch_size=batch_size, second=True)

    return StoredMoments(cache.folder("moments", inputs, build))


def readers_of(groups: Mapping[str, UnitGroup]) -> dict[str, str]:
    """Return the linear map that reads the units of each width group; groups without one are left out."""
    return {name: group.readers[0] for name, group in groups.items() if group.readers and not group.kind.is_depth}


def kept_inputs(model: PreTrainedModel, groups: Mapping[str, UnitGroup], plan: PruningPlan) -> dict[str, torch.Tensor]:
    """Return, for every linear map that loses inputs under the plan, which of them stay, (I,) bool.

    Raises:
        ValueError: the plan does not fit the groups.
    """
    read = readers_of(groups)
    removed = {name: units for name, units in removed_units(plan, groups).items() if name in read}
    places = removed_places(groups, removed)
    kept = {}
    for reader in dict.fromkeys(read[name] for name in removed):
        weight = weight_of(model, reader)
        kept[reader] = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
        for gone in places[f"{reader}.weight"].values():
            kept[reader][gone.to(weight.device)] = False
    return kept
