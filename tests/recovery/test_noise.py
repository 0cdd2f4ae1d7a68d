"""When noise acts in a training: from the first step on, for as many as it lasts, and never in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from recovery.noise import NoiseCallback


class Recorder:
    """A noise that notes what happens to it."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.acts = False
        self.renewed = 0

    @contextmanager
    def acting(self) -> Iterator[None]:
        self.acts = True
        yield
        self.acts = False

    def renew(self) -> None:
        assert self.acts
        self.renewed += 1


def trained(noise: Any, steps: int, begun: int = 0, stopped: int | None = None) -> tuple[list[int], list[int]]:
    """Go through the calls of a training; return the steps that the noise acted in, and those that may be saved after."""
    callback, state = NoiseCallback(noise), SimpleNamespace(global_step=begun, max_steps=steps)
    acted, saved = [], []
    callback.on_train_begin(None, state, None)
    for step in range(begun, stopped or steps):
        callback.on_step_begin(None, state, None)
        acted += [step] if noise.acts else []
        state.global_step, control = step + 1, SimpleNamespace(should_save=True)
        callback.on_step_end(None, state, control)
        saved += [step + 1] if control.should_save else []
    callback.on_train_end(None, state, None)
    assert not noise.acts
    return acted, saved


@pytest.mark.parametrize(
    ("lasts", "acted", "saved"), [(1, [0], [1, 2, 3, 4]), (3, [0, 1, 2], [3, 4]), (9, [0, 1, 2, 3], [4])]
)
def test_it_acts_for_its_steps_or_to_the_end(lasts: int, acted: list[int], saved: list[int]) -> None:
    noise = Recorder(lasts)
    assert trained(noise, 4) == (acted, saved)
    assert noise.renewed == len(acted) - 1


def test_a_training_that_goes_on_from_a_checkpoint_has_it_behind_it() -> None:
    assert trained(Recorder(2), 6, begun=2) == ([], [3, 4, 5, 6])


def test_it_ends_with_a_training_that_stops_early() -> None:
    assert trained(Recorder(5), 9, stopped=2) == ([0, 1], [])
