from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pruning.progress import Step, loop, shown_on, track


class Recorder:
    """A display that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    @contextmanager
    def loop(self, description: str, total: int) -> Iterator[Step]:
        self.told.append((description, total))

        def step(done: int = 1, now: str | None = None) -> None:
            self.told.append((done, now))

        try:
            yield step
        finally:
            self.told.append(f"end of {description}")


def test_without_a_display_a_loop_is_just_a_loop() -> None:
    assert list(track([3, 1, 2], "numbers")) == [3, 1, 2]
    with loop("numbers", 2) as step:
        step()
        step(0, now="one")


def test_a_display_is_told_every_round_and_what_is_being_worked_on() -> None:
    display = Recorder()
    with shown_on(display):
        assert list(track("ab", "letters")) == ["a", "b"]
        with loop("tasks", 1) as step:
            step(0, now="piqa")
    expected = [("letters", 2), (1, None), (1, None), "end of letters", ("tasks", 1), (0, "piqa"), "end of tasks"]
    assert display.told == expected


def test_a_loop_that_is_left_early_ends_on_the_display_too() -> None:
    display = Recorder()
    with shown_on(display):
        for item in track([1, 2, 3], "numbers"):
            if item == 2:
                break
        with pytest.raises(KeyError), loop("tasks", 3):
            raise KeyError("lost")
    assert display.told == [("numbers", 3), (1, None), "end of numbers", ("tasks", 3), "end of tasks"]


def test_a_display_is_told_nothing_after_its_block() -> None:
    display = Recorder()
    with shown_on(display):
        pass
    list(track([1], "numbers"))
    assert display.told == []
