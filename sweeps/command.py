"""What happens around Hydra on the command line: help, near names, and the end of a sweep."""

from __future__ import annotations

import sys
from collections.abc import Callable

from omegaconf.errors import OmegaConfBaseException

from conf import help, hints, identity, schema
from sweeps import sweep

SEE_HELP = "`python run.py --help` lists every option."


def run(main: Callable[[], None]) -> None:
    """Run the command line through `main`, which Hydra has wrapped.

    Raises:
        SystemExit: something on the command line is wrong, or a run of a sweep is not done.
    """
    arguments = sys.argv[1:]
    if help.wants_help(arguments):
        print(help.help_text())
        return
    try:
        hints.check_overrides(arguments)
    except ValueError as error:
        sys.exit(f"{error}\n{SEE_HELP}")
    schema.register()
    identity.register()
    if hints.asks_for_sweep(arguments) or hints.asks_for_plan(arguments):  # a plan of one run is that of a sweep of one
        sys.argv.append("hydra.mode=MULTIRUN")
    try:
        main()
    except OmegaConfBaseException as error:  # a value that has no default was not given
        sys.exit(f"{error}\n{SEE_HELP}")
    finally:
        done = sweep.end()
    if not done:
        sys.exit(1)
