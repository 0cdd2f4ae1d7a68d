"""What a model costs to hold and to run: parameters, multiply-accumulates, memory, tokens per second."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import statistics
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import PreTrainedModel

from pruning.model import count_parameters
from pruning.timing import decode_seconds, prefill, seconds_in_turn, seconds_of, token_ids

if TYPE_CHECKING:
    from evaluation.config import CostConfig


def measure_cost(model: PreTrainedModel, config: CostConfig, dense: PreTrainedModel | None = None) -> dict[str, float]:
    """Return params, macs, weights_bytes, peak_bytes (where it can be read), and the speeds at every batch size.

    macs: half of the floating-point operations that torch counts for one sequence of `macs_tokens`.
    peak_bytes: weights plus the most that a prefill of `prefill_tokens` takes beside them, at the largest batch size.
    For the speeds see `speeds`.

    Args:
        model: what is measured.
        config: shapes and repetitions.
        dense: what the model was before it was pruned, on the same device, to be timed in turn with it; None to time the model
            alone.
    """
    metrics: dict[str, float] = {"params": count_parameters(model), "weights_bytes": weight_bytes(model)}
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        model(input_ids=token_ids(model, 1, config.macs_tokens), use_cache=False)
    metrics["macs"] = counter.get_total_flops() / 2
    largest = token_ids(model, max(config.batch_sizes), config.prefill_tokens)
    extra = peak_rise(lambda: prefill(model, largest), model.device)
    if extra is not None:
        metrics["peak_bytes"] = weight_bytes(model) + extra
    models = [model] if dense is None else [model, dense]
    for size in config.batch_sizes:
        ids = token_ids(model, size, config.prefill_tokens)
        timings = [partial(seconds_of, partial(prefill, each, ids)) for each in models]
        metrics |= speeds("prefill", size, ids.numel(), seconds_in_turn(timings, config.repetitions))
        timings = [partial(decode_seconds, each, ids[:, :PROMPT], config.decode_tokens) for each in models]
        metrics |= speeds("decode", size, size * config.decode_tokens, seconds_in_turn(timings, config.repetitions))
    return metrics


PROMPT = 8
"""Tokens, at most, that decoding is timed behind."""


def speeds(work: str, size: int, tokens: int, seconds: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return medians over the repetitions with their interquartile ranges (`_iqr`), under names that end in `@<size>`.

    <work>_tok_s: tokens per second over the whole batch.
    <work>_speedup: the dense model's seconds over the model's, of each pair; above 1 = faster than the dense model.

    Args:
        work: prefill or decode.
        size: sequences in the batch.
        tokens: of the whole batch.
        seconds: of the model, and where they were timed in turn of the dense model, (R,) each.
    """
    samples = {"tok_s": [tokens / each for each in seconds[0]]}
    if len(seconds) > 1:
        samples["speedup"] = [dense / own for own, dense in zip(*seconds, strict=True)]
    found: dict[str, float] = {}
    for name, values in samples.items():
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        found |= {f"{work}_{name}@{size}": middle, f"{work}_{name}_iqr@{size}": high - low}
    return found


def attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """Return the operations of attention from the shapes of its inputs, (B, H, T, D) each."""
    return sdpa_flop_count(query, key, value)


def grouped_flops(tokens: torch.Size, weights: torch.Size, *_: Any, **__: Any) -> int:
    """Return the operations of one product for each token (T, I) with its expert's weight out of (E, I, O)."""
    return 2 * tokens[0] * weights[1] * weights[2]


UNCOUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._grouped_mm: grouped_flops,
}
"""Operators that torch's counter leaves out on a CPU."""


def weight_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of all parameters, tied ones counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def peak_rise(action: Callable[[], None], device: torch.device) -> int | None:
    """Return by how many bytes memory rises at most while `action` runs; None where the system does not tell.

    On a CPU the process's resident memory is sampled every millisecond.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    if not STATM.exists():
        return None
    give_back_free_memory()
    before = highest = resident_bytes()
    finished = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not finished.wait(0.001):
            highest = max(highest, resident_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        action()
    finally:
        finished.set()
        watcher.join()
    return highest - before


def give_back_free_memory() -> None:
    """Have the C library return what it holds free, which would hide a rise (glibc; elsewhere nothing happens)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Return the bytes of this process that are in memory (Linux)."""
    return int(STATM.read_text().split()[1]) * resource.getpagesize()
