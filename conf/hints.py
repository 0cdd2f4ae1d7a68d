"""Near names for mistyped overrides, looked up before Hydra composes anything.

Hydra's own message lists what there is; with a dozen groups the nearest name helps more. What this module does not
understand it leaves to Hydra.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from conf.schema import SCHEMAS, ExperimentConfig

CONF = Path(__file__).parent


def check_overrides(arguments: Sequence[str]) -> None:
    """Raise for an override that names an option or a key that is not there, with the nearest names.

    Args:
        arguments: the command line after the program's name.

    Raises:
        ValueError: the message names the override, what is allowed, and the nearest name.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ValueType
    from hydra.errors import OverrideParseException

    candidates = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    if any(argument.startswith(("--config-dir", "-cd", "--config-path", "-cp")) for argument in arguments):
        return
    try:
        overrides = OverridesParser.create().parse_overrides(candidates)
    except OverrideParseException:
        return
    for override in overrides:
        key = override.key_or_group
        if override.is_add() or override.is_delete() or key.split(".")[0].split("/")[0] == "hydra":
            continue
        if (CONF / key).is_dir():
            if override.value_type is ValueType.GLOB_CHOICE_SWEEP:
                continue
            values = override.sweep_string_iterator() if override.is_discrete_sweep() else [override.value()]
            for value in values:
                _check_option(key, value)
        else:
            _check_key(key)


def _check_option(group: str, value: object) -> None:
    options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    if isinstance(value, str) and value not in options and value != "null":
        raise ValueError(_message(f"{group}={value}", "option", value, options))


def _check_key(key: str) -> None:
    first, *rest = key.split(".")
    tops = _names(ExperimentConfig)
    if first not in tops:
        raise ValueError(_message(key, "key", first, [*tops, "experiment"]))
    if first in SCHEMAS and rest:
        allowed = sorted({name for schema in SCHEMAS[first].values() for name in _names(schema)})
        if rest[0] not in allowed:
            raise ValueError(_message(key, "key", rest[0], allowed))


def _names(schema: type) -> list[str]:
    return [item.name for item in fields(schema)]


def _message(override: str, kind: str, wrong: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(wrong, allowed, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{override}: there is no {kind} {wrong!r}.{hint} Allowed: {', '.join(allowed)}."
