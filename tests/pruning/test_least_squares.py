"""Least-squares compensation against an independent solution of the objective that it states."""

from __future__ import annotations

import pytest
import torch

from pruning.cache import Cache
from pruning.compensation.least_squares import LeastSquares
from pruning.compensation.moments import InputMoments, kept_inputs
from pruning.families import find_layout
from pruning.grouping import find_units
from tests.pruning.compensate import TEXT, corrections_of, half_plan
from tests.pruning.test_importance_activations import FAMILIES, inputs_of_reader, weight_of_reader
from tests.zoo import MODELS, build


def random_map(
    tokens: int = 200, inputs: int = 24, outputs: int = 7
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return correlated inputs x (tokens, I) with a mean of their own, a weight (O, I), and which inputs stay (I,)."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(inputs, inputs, generator=generator)
    x = (torch.randn(tokens, inputs, generator=generator) @ mixing + torch.randn(inputs, generator=generator)).double()
    weight = torch.randn(outputs, inputs, generator=generator).double()
    return x, weight, torch.arange(inputs) % 3 != 1


def refitted(x: torch.Tensor, weight: torch.Tensor, kept: torch.Tensor, ridge: float) -> torch.Tensor:
    """What the option makes of a map whose inputs are x, (O, I)."""
    moments = InputMoments(x.mean(dim=0), (x.T @ x / len(x)).float())
    found = LeastSquares(ridge=ridge).correct("map", weight, kept, moments).weight
    assert found is not None
    return found


def minimum(x: torch.Tensor, weight: torch.Tensor, kept: torch.Tensor, ridge: float) -> torch.Tensor:
    """The W'_K (O, K) with the least E|W x - W' x_K|^2 + sum_j r H_jj |W'_j - W_j|^2, each penalty a row of its own.

    Of several (an input that is always zero may have any weight) the nearest to W_K: solved for the change.
    """
    penalties = torch.diag((ridge * x[:, kept].square().mean(dim=0)).sqrt())
    rows = torch.cat((x[:, kept] / len(x) ** 0.5, penalties))
    missing = (x @ weight.T - x[:, kept] @ weight[:, kept].T) / len(x) ** 0.5
    targets = torch.cat((missing, torch.zeros(len(penalties), len(weight), dtype=torch.float64)))
    return weight[:, kept] + torch.linalg.lstsq(rows, targets, driver="gelsd").solution.T


def output_error(x: torch.Tensor, weight: torch.Tensor, new: torch.Tensor, kept: torch.Tensor) -> float:
    """E|W x - W' x_K|^2."""
    return float((x @ weight.T - x[:, kept] @ new[:, kept].double().T).square().sum(dim=1).mean())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ridge", [0.0, 0.001, 0.3])
def test_the_refit_is_the_minimum_of_the_objective(family: str, ridge: float, cache: Cache) -> None:
    model = build(family)
    plan = half_plan(model)
    corrections = corrections_of(model, LeastSquares(ridge=ridge), plan, cache)
    kept_by_reader = kept_inputs(model, find_units(model, find_layout(model)), plan)
    for reader, correction in corrections.items():
        x, weight, kept = inputs_of_reader(model, reader, TEXT), weight_of_reader(model, reader), kept_by_reader[reader]
        assert correction.weight is not None
        assert correction.weight.dtype == torch.float32
        expected = minimum(x, weight, kept, ridge)
        assert 0 < int(kept.sum()) < len(kept)
        assert not torch.allclose(expected, weight[:, kept], rtol=0.05)
        found = correction.weight[:, kept].double()
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_error_on_the_calibration_inputs_never_grows(family: str, dtype: torch.dtype, cache: Cache) -> None:
    if family in ("baichuan", "chatglm") and dtype is torch.bfloat16:
        pytest.skip("its code runs in float32 only")
    model = build(family).to(dtype)
    plan = half_plan(model)
    kept_by_reader = kept_inputs(model, find_units(model, find_layout(model)), plan)
    inputs = {reader: inputs_of_reader(model, reader, TEXT) for reader in kept_by_reader}
    weights = {reader: weight_of_reader(model, reader) for reader in kept_by_reader}
    plain = {
        reader: output_error(inputs[reader], weights[reader], weights[reader], kept_by_reader[reader])
        for reader in inputs
    }
    for ridge in (1e-4, 0.01, 1.0, 100.0):
        corrections = corrections_of(model, LeastSquares(ridge=ridge), plan, cache)
        assert set(corrections) == set(inputs)
        for reader, correction in corrections.items():
            assert correction.weight is not None
            assert correction.weight.dtype == dtype
            found = output_error(inputs[reader], weights[reader], correction.weight, kept_by_reader[reader])
            assert found < plain[reader], (reader, ridge)


def test_a_larger_ridge_stays_nearer_to_the_weights_that_were_there() -> None:
    x, weight, kept = random_map()
    moved = [float((refitted(x, weight, kept, ridge) - weight).norm()) for ridge in (1e-3, 0.1, 10.0, 1e6)]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 1e-4 * moved[0]


def test_rescaling_an_input_changes_nothing() -> None:
    x, weight, kept = random_map()
    scale = torch.ones(x.shape[1], dtype=torch.float64)
    scale[0], scale[1], scale[5] = 1e3, 1e-3, -50.0  # one that stays, one that leaves, one that stays
    plain = refitted(x, weight, kept, 0.05)
    scaled = refitted(x * scale, weight / scale, kept, 0.05)
    assert torch.allclose((scaled * scale)[:, kept], plain[:, kept], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_an_input_that_is_always_zero_keeps_its_weights(ridge: float) -> None:
    x, weight, kept = random_map()
    x[:, [0, 1]] = 0  # one that stays, one that leaves
    found = refitted(x, weight, kept, ridge)
    assert torch.equal(found[:, 0], weight[:, 0])
    rest = torch.arange(x.shape[1]) > 1
    expected = refitted(x[:, rest], weight[:, rest], kept[rest], ridge)
    assert torch.allclose(found[:, rest], expected, rtol=1e-9)


def test_where_nothing_ever_enters_every_weight_stays() -> None:
    x, weight, kept = random_map()
    assert torch.equal(refitted(0 * x, weight, kept, 0.01), weight)


@pytest.mark.parametrize("copies", [1, 2])
def test_inputs_that_are_sums_of_others_need_a_ridge(copies: int) -> None:
    x, weight, kept = random_map()
    x[:, 0] = x[:, 2] if copies == 1 else x[:, 2] + x[:, 3]
    with pytest.raises(ValueError, match=r"compensation\.ridge=0\.0: too small for map.*raise it \(0\.01"):
        refitted(x, weight, kept, 0.0)
    found = refitted(x, weight, kept, 0.001)
    assert output_error(x, weight, found, kept) < output_error(x, weight, weight, kept)


def test_fewer_tokens_than_inputs_need_a_ridge_and_the_reader_is_named(cache: Cache) -> None:
    model = build("llama_gqa_tied")
    groups, plan = find_units(model, find_layout(model)), half_plan(model)
    with pytest.raises(ValueError, match=r"compensation\.ridge=0\.0: too small for model\.layers\.1\."):
        LeastSquares(ridge=0.0).corrections(model, groups, plan, TEXT[:1], cache)
    assert LeastSquares().corrections(model, groups, plan, TEXT[:1], cache)


def test_a_negative_ridge_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compensation\.ridge=-0\.1: must be at least 0"):
        LeastSquares(ridge=-0.1)
