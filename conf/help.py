"""What `python run.py --help` prints: every group and option with the first line of its yaml.

Hydra's own help composes and lists everything anew for every group, which takes seconds, and has no place for descriptions.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

CONF = Path(__file__).parent
WIDTH = 100
INDENT = 25

START = """\
Secateur: structural pruning experiments on language models.
Prune, recover, measure; one run or a sweep of runs.

Start here:
  python run.py experiment=quickstart
  python run.py -m pruning.ratio=0.1,0.2,0.5 importance=taylor,l2 study=mine
  python run.py -m pruning.ratio=0.1,0.2,0.5 plan=true     # what is left, and how long it takes

Options of every group (group=option; * is taken when none is named):
"""

END = """
Any value can be overridden (key=value; a list of values or a range with -m):
  --cfg job --resolve            prints all values; docs/configuration.md explains them
  --multirun, -m                 one run per combination
  -sc install=bash               tab completion: eval "$(python run.py -sc install=bash)"
  --hydra-help                   Hydra's other flags
"""


def wants_help(arguments: list[str]) -> bool:
    """Say whether the command line asks for help."""
    return any(argument in ("--help", "-h") for argument in arguments)


def help_text() -> str:
    """Return the whole text."""
    chosen = defaults()
    parts = [START]
    for group in groups():
        parts.append(f"\n{group}\n")
        for path in sorted((CONF / group).glob("*.yaml")):
            mark = "*" if chosen.get(group) == path.stem else " "
            lead = f"  {mark} {path.stem}".ljust(INDENT)
            text = textwrap.fill(description(path), WIDTH, initial_indent=lead, subsequent_indent=" " * INDENT)
            parts.append(text + "\n")
    parts.append("\nKeys outside the groups:\n")
    parts += [f"    {line}\n" for line in keys()]
    return "".join([*parts, END])


def groups() -> list[str]:
    """Return the groups, in the order of `config.yaml`, Hydra's after the others."""
    found = sorted({str(path.parent.relative_to(CONF)) for path in CONF.rglob("*.yaml")} - {"."})
    order = list(defaults())
    return sorted(found, key=lambda group: (group.startswith("hydra"), order.index(group) if group in order else 99))


def description(path: Path) -> str:
    """Return the first comment line of an option's yaml."""
    comments = (line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    return next((line[2:] for line in comments if not line.startswith("# @package")), "")


def defaults() -> dict[str, str]:
    """Return group -> the option that is taken when none is named."""
    import yaml

    entries = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    pairs = [next(iter(entry.items())) for entry in entries if isinstance(entry, dict)]
    return {str(group).removeprefix("override ").lstrip("/"): str(option) for group, option in pairs}


def keys() -> list[str]:
    """Return the lines of `config.yaml` that set a value outside the groups, with their comments."""
    lines = (CONF / "config.yaml").read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("seed:"))
    found = []
    for line in lines[start:]:
        if not line.strip():
            break
        key, _, comment = line.partition(" # ")
        found.append(f"{key.replace(': ', '='):<30} {comment}".rstrip())
    return found
