"""How long models take to run. Models that are compared run in turn, so that a load that comes and goes falls on all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList


def seconds_in_turn(timings: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Return the seconds that each of `timings` tells in each round, (R,) for every one.

    In a round all run, one directly after the other; every second round runs in the other order. One round more, the first,
    warms up and is not counted.
    """
    seconds: list[list[float]] = [[] for _ in timings]
    for index in range(rounds + 1):
        order = range(len(timings))
        for which in order if index % 2 == 0 else reversed(order):
            seconds[which].append(timings[which]())
    return [found[1:] for found in seconds]


def seconds_of(action: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the wall time of `action`, which waits for what it started on a device."""
    start = clock()
    action()
    return clock() - start


def prefill(model: PreTrainedModel, ids: torch.Tensor) -> None:
    """Run the model on `ids` (B, T) up to the logits that follow each sequence."""
    with torch.inference_mode():
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    wait_for(ids.device)


def decode_seconds(model: PreTrainedModel, prompt: torch.Tensor, tokens: int) -> float:
    """Return the seconds of generating `tokens` greedily behind `prompt` (B, T), one by one.

    The clock starts when the first token is there, so that the prompt is not counted.
    """
    reached = Moments(prompt.device)
    model.generate(  # type: ignore[operator]
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=tokens + 1,
        min_new_tokens=tokens + 1,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        stopping_criteria=StoppingCriteriaList([reached]),
    )
    return reached.seconds[-1] - reached.seconds[0]


class Moments(StoppingCriteria):
    """Notes when each token is there, and never stops."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Note the time; input_ids is (B, T)."""
        wait_for(self.device)
        self.seconds.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=self.device)


def wait_for(device: torch.device) -> None:
    """Wait until `device` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def token_ids(model: PreTrainedModel, batch_size: int, length: int) -> torch.Tensor:
    """Return some token ids of the model's vocabulary, (batch_size, length)."""
    ids = torch.arange(batch_size * length, device=model.device)
    return (ids % model.config.vocab_size).view(batch_size, length)
