"""How far long loops are, told to whoever shows it. Nobody does outside a run in a terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Step(Protocol):
    """What a loop calls after every round."""

    def __call__(self, done: int = 1, now: str | None = None) -> None:
        """Say that `done` more rounds are over, and what is being worked on `now`."""


class Display(Protocol):
    """Shows loops while they run, one inside another."""

    def loop(self, description: str, total: int) -> AbstractContextManager[Step]:
        """Show a loop of `total` rounds as long as the context is open."""


_display: ContextVar[Display | None] = ContextVar("display", default=None)


@contextmanager
def shown_on(display: Display) -> Iterator[None]:
    """Show every loop of the block on `display`."""
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)


@contextmanager
def loop(description: str, total: int) -> Iterator[Step]:
    """Yield a function to call after every round of a loop of `total` rounds."""
    display = _display.get()
    if display is None:
        yield lambda done=1, now=None: None
    else:
        with display.loop(description, total) as step:
            yield step


def track(items: Collection[Item], description: str) -> Iterator[Item]:
    """Yield the items of a loop and show how far it is."""
    with loop(description, len(items)) as step:
        for item in items:
            yield item
            step()
