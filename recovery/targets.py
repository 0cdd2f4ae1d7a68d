"""Which linear maps of a model are trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from transformers import PreTrainedModel

from pruning.layout import is_linear
from pruning.units import UnitGroup


def linear_maps(model: PreTrainedModel, endings: Sequence[str] | None) -> list[str]:
    """Return the names of the linear maps whose names end so; without endings, of all but the head.

    Raises:
        ValueError: an ending fits no linear map.
    """
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if is_linear(module) and module is not head]
    if endings is None:
        return names
    for ending in endings:
        if not any(ends_so(name, ending) for name in names):
            raise ValueError(
                f"recovery.target_modules: no linear map of {type(model).__name__} is called {ending!r}; there are "
                f"{', '.join(last_parts(names))}; null takes all of them"
            )
    return [name for name in names if any(ends_so(name, ending) for ending in endings)]


def ends_so(name: str, ending: str) -> bool:
    """Say whether a module's name is `ending`, or ends with it after a dot."""
    return f".{name}".endswith(f".{ending}")


def last_parts(names: Collection[str]) -> list[str]:
    """Return what comes after the last dot in the names, each once."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def shortest_endings(model: PreTrainedModel, names: Sequence[str]) -> list[str]:
    """Return the last parts of the names where no other module of the model ends so, else the names as they are."""
    endings = last_parts(names)
    found = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in endings}
    return endings if found == set(names) else list(names)


def cut_maps(model: PreTrainedModel, groups: Mapping[str, UnitGroup]) -> list[str]:
    """Return the names of the linear maps, head aside, that lose rows or columns when units of the groups are cut."""
    cut = {piece.parameter.rpartition(".")[0] for group in groups.values() for piece in group.slices}
    return [name for name in linear_maps(model, None) if name in cut]
