"""A piece of work that several processes of this machine do together, each on a GPU of its own, or all on the CPU.

Each finds torch's process group and the environment by which accelerate, and so transformers' Trainer, shares a training out.
The work goes to them through a file: models are large, and what memory processes can share is often small.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from logging.handlers import QueueHandler
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, multiprocessing
from torch.multiprocessing.spawn import ProcessException, start_processes

from pruning.pruned_model import pruned_class

if TYPE_CHECKING:
    from recovery.trainer import LogStep

package = logging.getLogger("recovery")

Work = Callable[["LogStep"], None]
"""What each process calls, with what receives steps and losses. The process with rank 0 writes its results to files."""

POLL = 0.1
"""Seconds from one look at what the processes say to the next."""

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others at one point, e.g. for rank 0 to write a checkpoint."""


class WorkPickler(pickle.Pickler):
    """Writes the classes of pruned models, which no module holds, as what they are made of."""

    def reducer_override(self, found: Any) -> Any:
        """Say how such a class is made again."""
        if isinstance(found, type) and "ordinary_class" in vars(found):
            return pruned_class, (vars(found)["ordinary_class"], found.__module__)
        return NotImplemented


def save_work(work: Work, file: Path) -> None:
    """Write work with the models and texts that it holds, for `carry_out`."""
    torch.save(work, file, pickle_module=SimpleNamespace(__name__=__name__, Pickler=WorkPickler))


def carry_out(file: Path, processes: int, device: str, log: LogStep) -> None:
    """Have so many processes do the work in a file of `save_work`, and return when all are done. None of them outlives this.

    Args:
        file: of this program's own, as it is unpickled; removed in the end.
        processes: how many.
        device: type of device; with cuda each process has the GPU of its rank.
        log: receives what rank 0 logs.

    Raises:
        Exception: the first that a process raised.
    """
    said = multiprocessing.get_context("spawn").Queue()
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    options = processes, device, store.port, file, said, package.getEffectiveLevel()
    with spawning():
        context = start_processes(_process, options, processes, join=False)
    errors: list[Exception] = []
    try:
        while not context.join(POLL):
            errors += _hand_on(said, log)
        _hand_on(said, log)
    except ProcessException as failure:
        errors += _hand_on(said, log)
        raise (errors[0] if errors else failure) from failure
    finally:
        for process in context.processes:
            process.kill()
            process.join()
        file.unlink(missing_ok=True)


@contextmanager
def spawning() -> Iterator[None]:
    """Have processes told that they are spawned: of joblib's own way, in which this one may be, they know nothing."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def _hand_on(said: Any, log: LogStep) -> list[Exception]:
    """Hand on what the processes have said meanwhile; return the exceptions among it."""
    errors = []
    while not said.empty():
        found = said.get()
        if isinstance(found, logging.LogRecord):
            logging.getLogger(found.name).handle(found)
        elif isinstance(found, Exception):
            errors.append(found)
        else:
            log(*found)
    return errors


def _process(rank: int, processes: int, device: str, port: int, file: Path, said: Any, level: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # torch has it sent when the parent dies: even a wait is ended by it
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update({name: str(value) for name, value in names.items()})
    if device == "cuda":
        torch.cuda.set_device(rank)
    package.setLevel(level)
    package.addHandler(QueueHandler(said) if rank == 0 else logging.NullHandler())
    package.propagate = False
    store = distributed.TCPStore("127.0.0.1", port, is_master=False, timeout=PATIENCE)
    backend = "nccl" if device == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=processes, timeout=PATIENCE)
    try:
        own = {f"cuda:{index}": f"cuda:{rank}" for index in range(torch.cuda.device_count())}
        work: Work = torch.load(file, own, mmap=True, weights_only=False)
        work((lambda *step: said.put(step)) if rank == 0 else lambda *_: None)
    except Exception as error:
        said.put(error)
        raise
    distributed.destroy_process_group()
