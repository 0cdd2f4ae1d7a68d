"""In how many processes a model is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recovery.trained import TrainedRecovery


def check_processes(processes: int, batch_size: int, micro_batch_size: int) -> None:
    """Raise where a step cannot be shared out over so many processes in whole forward passes."""
    if processes < 1:
        raise ValueError(f"recovery.processes={processes}: must be at least 1, or auto")
    if batch_size % (micro_batch_size * processes):
        raise ValueError(
            f"recovery.processes={processes}: recovery.batch_size={batch_size} must be a multiple of "
            f"recovery.micro_batch_size={micro_batch_size} times the {processes} processes, so that each has equally many "
            "blocks of a step; change one of the three"
        )


def processes_on(device: str, recovery: TrainedRecovery) -> int:
    """Return the number of processes that train a model on such a type of device.

    Raises:
        ValueError: there are not so many GPUs, the device has only one, or a step cannot be shared out.
    """
    import torch

    gpus = torch.cuda.device_count() if device == "cuda" else 0
    processes = max(1, gpus) if isinstance(recovery.processes, str) else recovery.processes
    if processes > 1 and device not in ("cuda", "cpu"):
        raise ValueError(f"recovery.processes={processes}: several work on device=cuda or cpu, not on {device}; use 1")
    if gpus and processes > gpus:
        raise ValueError(
            f"recovery.processes={processes}: each needs a GPU of its own, and {gpus} can be seen; use at most {gpus}, or auto"
        )
    check_processes(processes, recovery.batch_size, recovery.micro_batch_size)
    return processes
