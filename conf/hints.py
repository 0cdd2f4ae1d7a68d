"""Near names for mistyped overrides, looked up before Hydra composes anything.

Hydra's own message lists what there is; with a dozen groups the nearest name helps more. What this module does not
understand it leaves to Hydra.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import yaml

from conf.schema import SCHEMAS, ExperimentConfig

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

CONF = Path(__file__).parent
NOT_OURS = ("--config-dir", "-cd", "--config-path", "-cp", "--shell-completion", "-sc")
"""Flags that bring options of their own, or other arguments."""

EXTRAS: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    "hydra/launcher": {
        "launchers": {
            "hydra_submitit_launcher": ("submitit_local", "submitit_slurm", "slurm"),
            "hydra_ray_launcher": ("ray", "ray_local"),
        }
    },
    "hydra/sweeper": {"search": {"hydra_optuna_sweeper": ("optuna", "search", "pareto")}},
    "experiment": {"search": {"hydra_optuna_sweeper": ("pareto",)}},
}
"""Group -> extra of the installation -> Hydra plugin in it -> the options that need it."""


def check_overrides(arguments: Sequence[str]) -> None:
    """Raise for an override that names an option, a key or a value that is not there, with the nearest names.

    Args:
        arguments: the command line after the program's name.

    Raises:
        ValueError: the message names the override, what is allowed, and the nearest name.
    """
    if any(argument.startswith(NOT_OURS) for argument in arguments):
        return
    for override in parse(arguments):
        key = override.key_or_group
        if override.is_add() or override.is_delete():
            continue
        for value in _values(override):
            _check_installed(key, value)
        if key.split(".")[0].split("/")[0] == "hydra":
            continue
        if (CONF / key).is_dir():
            for value in _values(override):
                _check_option(key, value)
        else:
            _check_values(key, _types_of(key), _values(override))


def asks_for_plan(arguments: Sequence[str]) -> bool:
    """Say whether `plan` is set on the command line."""
    return any(override.key_or_group == "plan" and override.value() is True for override in parse(arguments))


def asks_for_sweep(arguments: Sequence[str]) -> bool:
    """Say whether a preset is chosen that sweeps, and nothing else is said of the mode.

    Hydra learns that from the preset only after it has refused other lists of values (`schedule=linear,cubic`) as ambiguous.
    """
    chosen = {override.key_or_group: override.value() for override in parse(arguments)}
    preset = CONF / "experiment" / f"{chosen.get('experiment')}.yaml"
    if "hydra.mode" in chosen or not preset.is_file():
        return False
    hydra = yaml.safe_load(preset.read_text(encoding="utf-8")).get("hydra", {})
    return hydra.get("mode") == "MULTIRUN"


def parse(arguments: Sequence[str]) -> list[Override]:
    """Return the overrides among the arguments; none when Hydra, too, will not understand them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    candidates = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    try:
        return OverridesParser.create().parse_overrides(candidates)
    except OverrideParseException:
        return []


def _values(override: Override) -> list[Any]:
    """Return the values that an override gives to its key one after the other; none where only Hydra can list them."""
    from hydra.core.override_parser.types import ValueType

    if override.value_type in (ValueType.GLOB_CHOICE_SWEEP, ValueType.INTERVAL_SWEEP):
        return []
    return list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]


def _check_installed(group: str, value: object) -> None:
    for extra, plugins in EXTRAS.get(group, {}).items():
        for plugin, options in plugins.items():
            if value in options and find_spec(f"hydra_plugins.{plugin}") is None:
                install = f"pip install --constraint constraints.txt --editable '.[{extra}]'"
                raise ValueError(f"{group}={value}: needs the extra {extra!r}, which is not installed: {install}")


def _check_option(group: str, value: object) -> None:
    options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    if isinstance(value, str) and value not in options and value != "null":
        raise ValueError(_message(f"{group}={value}", "option", value, options))


def _types_of(key: str) -> list[Any]:
    """Return the types that a key may have, one for every schema of its group that knows it.

    Raises:
        ValueError: no schema knows it.
    """
    first, *rest = key.split(".")
    tops = get_type_hints(ExperimentConfig)
    if first not in tops:
        raise ValueError(_message(key, "key", first, [*tops, "experiment"]))
    types = list(SCHEMAS[first].values()) if first in SCHEMAS else [tops[first]]
    group = first
    for name in rest:
        known = [get_type_hints(schema) for schema in types if is_dataclass(schema)]
        if not known:  # a dictionary with keys of the user's
            return []
        if not any(name in hints for hints in known):
            raise ValueError(_message(key, "key", name, sorted({name for hints in known for name in hints})))
        group = f"{group}/{name}"
        types = list(SCHEMAS.get(group, {}).values()) or [hints[name] for hints in known if name in hints]
    return types


def _check_values(key: str, types: Sequence[Any], values: Iterable[Any]) -> None:
    """Raise for a value that an enumeration does not have, where nothing but enumerations is allowed."""
    kinds = {kind for one in types for kind in _leaves(one)} - {type(None)}
    if not kinds or not all(isinstance(kind, type) and issubclass(kind, Enum) for kind in kinds):
        return
    allowed = list(dict.fromkeys(member.name for kind in kinds for member in kind))
    for value in values:
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and item not in allowed:
                raise ValueError(_message(f"{key}={item}", "value", item, allowed))


def _leaves(kind: Any) -> list[Any]:
    """Return what a type is made of: the members of unions, the elements of lists."""
    parts = get_args(kind)
    return [leaf for part in parts for leaf in _leaves(part)] if parts else [kind]


def _message(override: str, kind: str, wrong: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(wrong, allowed, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{override}: there is no {kind} {wrong!r}.{hint} Allowed: {', '.join(allowed)}."
