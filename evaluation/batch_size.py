"""How much is scored in one batch: less once memory runs out, which the log says once, and never more again.

The rule for probes: the two around a cut are scored in batches of one size. It is found before the cut, on the model that
takes more memory, and stays as it is until the probe after the cut is over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class BatchSize:
    """A size that is halved as often as memory runs out."""

    def __init__(self, size: int, unit: str, fix: str) -> None:
        """Begin with `size` of what `unit` names in a batch; `fix` says what helps where even the least is too much."""
        self.size = size
        self.unit = unit
        self.fix = fix
        self._said = False

    def halve(self, error: RuntimeError, tried: int, *, least: bool) -> None:
        """Halve the size after an error in a batch of `tried`.

        Args:
            error: raised again where it is not for lack of memory.
            tried: how much was in the batch.
            least: whether no batch can be smaller.

        Raises:
            torch.OutOfMemoryError: none can. It says what helps.
        """
        if not is_out_of_memory(error):
            raise error
        if least:
            raise self.refusal(f"{tried} {self.unit} do not fit in memory, and no batch can be smaller") from error
        if not self._said:
            log.warning("out of memory with %d %s in a batch: smaller batches from here on", tried, self.unit)
        self._said = True
        self.size = max(1, min(tried, self.size) // 2)

    def refusal(self, why: str) -> RuntimeError:
        """Return the error that ends a run, with what helps."""
        import torch

        return torch.OutOfMemoryError(f"out of memory: {why}. {self.fix}")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Say whether an error is for lack of memory, of a GPU or of the processor, whose allocator has no class for it."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    words = "DefaultCPUAllocator: not enough memory"
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error) or words in str(error)


def in_one_size(run: Callable[[int], Result], batch: BatchSize, *, fixed: bool = False) -> Result:
    """Return `run(batch.size)`; where memory runs out, all of it is run again with half the size.

    Args:
        run: computes something in batches of a size, which are all alike: when one does not fit, it is the first.
        batch: changed when memory runs out.
        fixed: the size may not change, because what was computed before must be comparable.
    """
    while True:
        try:
            return run(batch.size)
        except RuntimeError as error:
            if fixed and is_out_of_memory(error):
                why = f"batches of {batch.size} {batch.unit} fitted before the cut, and stay as they are until it is measured"
                raise batch.refusal(f"{why}. Free the memory that other work has taken since") from error
            batch.halve(error, batch.size, least=batch.size == 1)
