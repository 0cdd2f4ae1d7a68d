"""The command: `python -m evaluation.dashboard <study or run folder> ...`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evaluation.dashboard import write_dashboard


def main(arguments: list[str] | None = None) -> int:
    """Write the page and print its path; return the exit code: 0, or 1 after a message about what cannot be shown."""
    options = parse(arguments)
    try:
        page = write_dashboard(options.folders, options.out)
    except (ValueError, OSError) as error:
        print(f"cannot write the dashboard: {error}", file=sys.stderr)
        return 1
    print(f"{page}: open it in a browser")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.dashboard", description="Write one HTML file that compares runs."
    )
    parser.add_argument("folders", type=Path, nargs="+", help="studies (runs/<study>), run folders, or all of runs/")
    parser.add_argument(
        "--out",
        type=Path,
        help="the file to write (default: dashboard.html in the folder; of several folders, in the one they share)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
