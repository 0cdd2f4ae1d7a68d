from __future__ import annotations

import time

import pytest
import torch
from transformers import PreTrainedModel

from pruning import timing
from pruning.timing import decode_seconds, prefill, seconds_in_turn, seconds_of, token_ids
from tests.zoo import build


def test_all_run_once_a_round_in_turning_order_and_the_first_round_does_not_count() -> None:
    ran: list[str] = []

    def told(name: str) -> float:
        ran.append(name)
        return len(ran)

    found = seconds_in_turn([lambda: told("a"), lambda: told("b"), lambda: told("c")], 2)
    assert "".join(ran) == "abc" + "cba" + "abc"
    assert found == [[6, 7], [5, 8], [4, 9]]


def test_an_action_is_timed_by_the_clock() -> None:
    times = iter([10.0, 12.5])
    assert seconds_of(lambda: None, lambda: next(times)) == 2.5


@pytest.mark.parametrize("family", ["llama_gqa_tied", "gpt2", "falcon_alibi"])
def test_decoding_is_timed_from_the_first_token_on_and_takes_one_pass_a_token(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(family)
    now = 0.0
    lengths: list[int] = []

    def count(module: PreTrainedModel, given: tuple[object, ...], options: dict[str, torch.Tensor]) -> None:
        nonlocal now
        lengths.append(options["input_ids"].shape[1])
        now += 100.0 if len(lengths) == 1 else 0.25

    model.register_forward_pre_hook(count, with_kwargs=True)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    assert decode_seconds(model, token_ids(model, 3, 8), 6) == 6 * 0.25
    assert len(lengths) == 7


def test_a_prefill_computes_only_the_logits_that_follow(llama: PreTrainedModel) -> None:
    shapes: list[torch.Size] = []
    llama.get_output_embeddings().register_forward_hook(lambda _, __, found: shapes.append(found.shape))
    prefill(llama, token_ids(llama, 2, 16))
    assert shapes == [(2, 1, 258)]


def test_the_real_clock_is_that_of_the_wall() -> None:
    assert 0.02 <= seconds_of(lambda: time.sleep(0.02)) < 1
