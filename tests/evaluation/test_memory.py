from __future__ import annotations

import gc
import weakref

import pytest

from evaluation.memory import release


class Model:
    """Something that a run holds."""


def fail_with(model: Model) -> None:
    held = model
    try:
        raise KeyError(str(held))
    except KeyError as error:
        raise ValueError("the run failed") from error


def failure() -> tuple[ValueError, weakref.ref[Model]]:
    model = Model()
    watched = weakref.ref(model)
    try:
        fail_with(model)
    except ValueError as error:
        return error, watched
    raise AssertionError


def test_an_error_that_is_kept_does_not_keep_the_model() -> None:
    error, watched = failure()
    gc.collect()
    assert watched() is not None  # the frames of the traceback hold it
    release(error)
    assert watched() is None
    with pytest.raises(ValueError, match="the run failed"):
        raise error


def test_without_an_error_circles_are_collected() -> None:
    circle = Model()
    circle.itself = circle  # type: ignore[attr-defined]
    watched = weakref.ref(circle)
    del circle
    release(None)
    assert watched() is None
