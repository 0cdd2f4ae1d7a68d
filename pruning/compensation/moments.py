"""Moments of the inputs of the linear maps that read units, kept in the cache.

One pass over the calibration text serves every ratio, allocation and compensation of a model. Where scores are taken on some
of the same text, the moments of that part are summed while these passes go by, and kept apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from pruning.autocast import autocast_inputs
from pruning.cache import Cache, digest
from pruning.importance.activations import InputMoments as StreamedMoments
from pruning.importance.activations import InputSums, stream_input_moments
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

    parts: Sequence[tuple[int, Path]]
    """Tokens and folder of each part of the text."""

    def of(self, reader: str) -> InputMoments:
        """Return the moments of one linear map's inputs."""
        tokens = sum(count for count, _ in self.parts)
        found: dict[str, torch.Tensor] = {}
        for count, folder in self.parts:
            for name, values in load_file(folder / f"{reader}.safetensors").items():
                share = values.mul_(count / tokens)
                found[name] = found[name].add_(share) if name in found else share
        return InputMoments(**found)


def input_moments(
    model: PreTrainedModel,
    groups: Mapping[str, UnitGroup],
    samples: torch.Tensor,
    cache: Cache,
    batch_size: int | None = None,
    layers_at_once: int | None = None,
    scored: int = 0,
) -> StoredMoments:
    """Return the moments of the inputs of every linear map that reads units of `groups`, computed or from the cache.

    Args:
        model: in evaluation mode; bit-identical afterwards.
        groups: those that may be cut.
        samples: token ids, (N, T).
        cache: where they are kept.
        batch_size: samples run at once; None for all.
        layers_at_once: layers whose moments are held at the same time; None for all.
        scored: the first so many samples are a part of their own; see `moments_in_passing`.
    """
    readers = list(dict.fromkeys(readers_of(groups).values()))

    def stored(part: torch.Tensor) -> tuple[int, Path]:
        def build(folder: Path) -> None:
            for chosen in in_rounds(readers, layers_at_once):
                stream_input_moments(model, chosen, part, partial(_keep, folder), batch_size=batch_size, second=True)

        return part.numel(), cache.folder("moments", _inputs(model, readers, part), build)

    return StoredMoments([stored(part) for part in (samples[:scored], samples[scored:]) if len(part)])


@contextmanager
def moments_in_passing(
    model: PreTrainedModel, groups: Mapping[str, UnitGroup], samples: torch.Tensor, cache: Cache
) -> Iterator[None]:
    """Keep the moments on `samples` (N, T) if the block begins with running the model over them, each of them once.

    What else runs inside, later or again for a gradient, does not count; nor does a block that needs no passes.
    """
    readers = list(dict.fromkeys(readers_of(groups).values()))
    inputs = _inputs(model, readers, samples)
    if not readers or cache.has_folder("moments", inputs):
        yield
        return
    sums = {reader: InputSums(second=True) for reader in readers}
    fresh: set[str] = set()  # maps that the pass of the moment has not come to

    def begin(module: nn.Module, given: Any) -> None:
        fresh.update(readers)

    def watch(module: nn.Module, given: tuple[torch.Tensor, ...], reader: str) -> None:
        if reader in fresh and sums[reader].count < samples.numel():
            fresh.remove(reader)
            sums[reader].add(given[0].detach().flatten(0, -2))

    handles = [model.get_input_embeddings().register_forward_pre_hook(begin)]
    handles += [model.get_submodule(name).register_forward_pre_hook(partial(watch, reader=name)) for name in readers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

    def build(folder: Path) -> None:
        for name in readers:
            _keep(folder, name, sums.pop(name).moments())

    if all(own.count == samples.numel() for own in sums.values()):
        cache.folder("moments", inputs, build)


def _inputs(model: PreTrainedModel, readers: Sequence[str], samples: torch.Tensor) -> dict[str, Any]:
    """Return what moments depend on."""
    text = {"readers": readers, "samples": digest(samples.tolist())}
    return {"model": fingerprint(model), **text, **autocast_inputs(model.device)}


def _keep(folder: Path, reader: str, moments: StreamedMoments) -> None:
    """Write the moments of one linear map's inputs."""
    assert moments.second is not None
    tensors = {"mean": moments.mean.cpu(), "second": moments.second.float().cpu()}
    save_file(tensors, folder / f"{reader}.safetensors")


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
