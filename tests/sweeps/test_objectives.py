from __future__ import annotations

import math

import pytest

from sweeps.objectives import objectives

METRICS = {"recovered/zeroshot/mean": 0.4, "pruned/ratio_reached": 0.2, "recovered/ppl/wikipedia@128": None}


def test_the_default_is_the_zero_shot_mean_where_there_is_one() -> None:
    assert objectives(METRICS, None) == 0.4
    assert objectives({"recovered/probe/loss": 4.0}, None) is None


def test_one_name_gives_a_number_and_several_give_a_tuple_in_their_order() -> None:
    assert objectives(METRICS, ["pruned/ratio_reached"]) == 0.2
    assert objectives(METRICS, ["pruned/ratio_reached", "recovered/zeroshot/mean"]) == (0.2, 0.4)


@pytest.mark.parametrize(
    ("metrics", "name", "near"),
    [
        (METRICS, "recovered/zeroshot/men", "recovered/zeroshot/mean"),
        (METRICS, "recovered/ppl/wikipedia@128", "recovered/ppl/wikipedia@128"),
        ({"pruned/ratio_reached": math.nan}, "pruned/ratio_reached", "pruned/ratio_reached"),
    ],
)
def test_a_figure_that_is_not_there_is_named_with_those_like_it(metrics: dict, name: str, near: str) -> None:
    with pytest.raises(ValueError, match="this run has no figure") as caught:
        objectives(metrics, ["pruned/ratio_reached", name])
    assert repr(name) in str(caught.value)
    assert near in str(caught.value).partition("Measured were")[2]
