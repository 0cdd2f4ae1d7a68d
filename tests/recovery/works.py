"""Work for processes of a recovery that needs no training; in a module of its own, as each process imports it."""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import Any

import torch


def sums(log: Any) -> None:
    """Log the sum of the ranks of all processes."""
    found = torch.tensor([float(torch.distributed.get_rank())])
    torch.distributed.all_reduce(found)
    logging.getLogger("recovery.somewhere").info("said by %d", torch.distributed.get_rank())
    log(1, found.item())


def fails(log: Any) -> None:
    """One process raises, the others wait for it."""
    if torch.distributed.get_rank() == 1:
        raise ValueError("recovery.data: nobody can read this")
    torch.distributed.barrier()


def dies(log: Any) -> None:
    """One process is killed, the others wait for it."""
    if torch.distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.barrier()


def lasts(log: Any) -> None:
    """Say that the work has begun, and go on for ever."""
    log(1, 0.0)
    time.sleep(1000)
