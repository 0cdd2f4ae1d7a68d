"""What a model costs to hold and to run: parameters, multiply-accumulates, memory, tokens per second."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import PreTrainedModel

from pruning.model import count_parameters

if TYPE_CHECKING:
    from evaluation.config import CostConfig


def measure_cost(model: PreTrainedModel, config: CostConfig) -> dict[str, float]:
    """Return params, macs, weights_bytes, peak_bytes (where it can be read), prefill_tok_s and decode_tok_s.

    macs: half of the floating-point operations that torch counts for one sequence of `macs_tokens`.
    peak_bytes: weights plus the most that a prefill of batch_size x prefill_tokens takes beside them.
    prefill_tok_s, decode_tok_s: tokens per second over the whole batch.
    """
    ids = token_ids(model, config.batch_size, config.prefill_tokens)
    metrics: dict[str, float] = {"params": count_parameters(model), "weights_bytes": weight_bytes(model)}
    with torch.inference_mode():
        with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
            model(input_ids=token_ids(model, 1, config.macs_tokens), use_cache=False)
        metrics["macs"] = counter.get_total_flops() / 2

        def prefill() -> None:
            model(input_ids=ids, use_cache=False, logits_to_keep=1)

        extra = peak_rise(prefill, model.device)
        if extra is not None:
            metrics["peak_bytes"] = weight_bytes(model) + extra
        seconds = median_seconds(prefill, config.repetitions, model.device)
        metrics["prefill_tok_s"] = ids.numel() / seconds
        seconds = median_decode_seconds(model, ids, config)
        metrics["decode_tok_s"] = config.batch_size * config.decode_tokens / seconds
    return metrics


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


def token_ids(model: PreTrainedModel, batch_size: int, length: int) -> torch.Tensor:
    """Return some token ids of the model's vocabulary, (batch_size, length)."""
    ids = torch.arange(batch_size * length, device=model.device)
    return (ids % model.config.vocab_size).view(batch_size, length)


def weight_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of all parameters, tied ones counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def median_seconds(action: Callable[[], None], repetitions: int, device: torch.device) -> float:
    """Return the median wall time of `action` in seconds; its first run is not counted."""
    times = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def median_decode_seconds(model: PreTrainedModel, ids: torch.Tensor, config: CostConfig) -> float:
    """Return the median seconds of generating `decode_tokens` greedily after a short prompt, the prompt not counted."""
    prompt = ids[:, :8]
    options = {
        "attention_mask": torch.ones_like(prompt),
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }

    def generate(tokens: int) -> Callable[[], None]:
        return lambda: model.generate(  # type: ignore[operator]
            prompt, max_new_tokens=tokens, min_new_tokens=tokens, **options
        )

    one = median_seconds(generate(1), config.repetitions, model.device)
    many = median_seconds(generate(config.decode_tokens + 1), config.repetitions, model.device)
    return max(many - one, 1e-9)


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
