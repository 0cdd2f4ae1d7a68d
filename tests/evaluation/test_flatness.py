"""Every figure of flatness against the dense Hessian, the explicit J^T H J, a loop over samples, or the displaced model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from functools import cache

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from evaluation.flatness.config import MeasuredFlatness
from evaluation.flatness.curvature import gauss_newton, hessian, top_eigenpairs, trace
from evaluation.flatness.displacement import average_rise, sharpness, shortest_step
from evaluation.flatness.figures import flatness_figures
from evaluation.flatness.gradient_moment import gradient_moment
from evaluation.flatness.landscape import LossLandscape, differentiable_twice

NAMES = ["model.layers.0.self_attn.o_proj.weight", "model.layers.1.mlp.down_proj.weight"]
BLOCKS = torch.randint(0, 12, (4, 6), generator=torch.Generator().manual_seed(0))


def tiny_llama() -> LlamaForCausalLM:
    """A LLaMA in float64 (norms and the loss stay in float32) whose loss is far from flat; 112 of its weights are looked at."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 12, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.4}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, pad_token_id=0)).double().eval()


@pytest.fixture
def landscape() -> Iterator[LossLandscape]:
    model = tiny_llama()
    with differentiable_twice(model, NAMES):
        yield LossLandscape(model, NAMES, BLOCKS, 2)


def logits_at(model: LlamaForCausalLM, weights: torch.Tensor) -> torch.Tensor:
    """The logits that predict a token, (N, T - 1, V), with the looked-at weights (P,) put in place of the model's."""
    parts, start = {}, 0
    for name in NAMES:
        shape = model.get_parameter(name).shape
        parts[name] = weights[start : start + shape.numel()].view(shape)
        start += shape.numel()
    return torch.func.functional_call(model, parts, kwargs={"input_ids": BLOCKS}).logits[:, :-1]


def loss_at(model: LlamaForCausalLM, weights: torch.Tensor) -> torch.Tensor:
    chances = logits_at(model, weights).log_softmax(-1)
    return -chances.gather(-1, BLOCKS[:, 1:, None]).mean()


def start(model: LlamaForCausalLM) -> torch.Tensor:
    return torch.cat([model.get_parameter(name).detach().flatten() for name in NAMES])


@cache
def dense_hessian() -> torch.Tensor:
    """(P, P), through attention written out in full."""
    model = tiny_llama()
    model.set_attn_implementation("eager")
    return torch.autograd.functional.hessian(lambda weights: loss_at(model, weights), start(model))


@cache
def dense_gauss_newton() -> torch.Tensor:
    """J^T H J with J (outputs, P) and, for each predicted token, H = diag(p) - p p^T, over the number of tokens."""
    model = tiny_llama()
    model.set_attn_implementation("eager")
    weights = start(model)
    jacobian = torch.autograd.functional.jacobian(lambda w: logits_at(model, w).flatten(0, 1), weights)
    chances = logits_at(model, weights).detach().flatten(0, 1).softmax(-1)
    total = torch.zeros(len(weights), len(weights), dtype=torch.float64)
    for own, chance in zip(jacobian, chances, strict=True):
        total += own.T @ (chance.diag() - chance.outer(chance)) @ own
    return total / len(chances)


def test_products_are_those_of_the_dense_matrices(landscape: LossLandscape) -> None:
    vector = torch.randn(landscape.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for operator, dense in ((hessian(landscape), dense_hessian()), (gauss_newton(landscape), dense_gauss_newton())):
        torch.testing.assert_close(operator.matvec(vector), dense @ vector, rtol=1e-4, atol=1e-5)
    assert (dense_hessian() - dense_gauss_newton()).norm() > 0.05 * dense_hessian().norm(), "the two must be told apart"


def test_traces_are_within_their_error(landscape: LossLandscape) -> None:
    for operator, dense in ((hessian(landscape), dense_hessian()), (gauss_newton(landscape), dense_gauss_newton())):
        true = dense.trace().item()
        found = trace(operator, 60, 0, "trace")
        assert 0 < found.stderr < 0.2 * true
        assert abs(found.estimate - true) < 3 * found.stderr


def test_eigenpairs_are_the_largest_algebraic_ones(landscape: LossLandscape) -> None:
    values = torch.linalg.eigvalsh(dense_hessian()).flip(0)
    assert values[-1] < -0.05, "an indefinite Hessian tells algebraic order from magnitude"
    found = top_eigenpairs(hessian(landscape), 6, 60, 0)
    torch.testing.assert_close(found.values, values[:6], rtol=1e-3, atol=0.0)
    assert found.converged == 1
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-6)
    assert top_eigenpairs(hessian(landscape), 6, 7, 0).converged < 1


def test_the_gradient_moment_is_that_of_a_loop_over_samples(landscape: LossLandscape) -> None:
    gradients = []
    for row in BLOCKS:
        model = tiny_llama()
        logits = model(row[None]).logits[0, :-1]
        functional.cross_entropy(logits, row[1:]).backward()
        gradients.append(torch.cat([model.get_parameter(name).grad.flatten() for name in NAMES]))
    stacked = torch.stack(gradients)
    found = gradient_moment(landscape, BLOCKS)
    assert found.trace == pytest.approx((stacked.T @ stacked / 4).trace().item(), rel=1e-5)
    centred = torch.cov(stacked.T, correction=0).trace().item()
    assert found.centred_trace == pytest.approx(centred, rel=1e-5)
    assert found.trace_stderr == pytest.approx((stacked.square().sum(1).std() / 2).item(), rel=1e-5)


def test_displacements_cost_what_the_displaced_model_loses(landscape: LossLandscape) -> None:
    model = tiny_llama()
    weights = start(model).requires_grad_()
    loss_at(model, weights).backward()
    here, gradient = loss_at(model, weights).item(), weights.grad
    step = 0.3 * weights.detach().norm() * gradient / gradient.norm()
    assert sharpness(landscape, [0.3]) == pytest.approx(
        [loss_at(model, weights.detach() + step).item() - here], rel=1e-4
    )

    noise = torch.Generator().manual_seed(5)
    rises = []
    for _ in range(3):
        drawn = torch.randn(len(weights), generator=noise)
        rises.append(loss_at(model, weights.detach() * (1 + 0.5 * drawn * weights.detach().sign())).item() - here)
    expected = (sum(rises) / 3, torch.tensor(rises, dtype=torch.float64).std().item() / math.sqrt(3))
    assert average_rise(landscape, 0.5, 3, 5) == pytest.approx(expected, rel=1e-4)


def test_the_shortest_step_is_the_first_of_a_fine_grid(landscape: LossLandscape) -> None:
    model = tiny_llama()
    weights, directions = start(model), torch.linalg.eigh(dense_hessian()).eigenvectors.T[-3:]
    here = loss_at(model, weights)
    grid = torch.arange(0.01, 1.0, 0.01).tolist()
    costly = (
        length
        for length in grid
        if any(loss_at(model, weights + s * length * v) - here >= 0.1 for v in directions for s in (1, -1))
    )
    found = shortest_step(landscape, directions, 0.1)
    assert found.reached
    assert found.length == pytest.approx(next(costly), abs=0.02)
    assert shortest_step(landscape, directions, 1e6).length == landscape.norm
    assert not shortest_step(landscape, directions, 1e6).reached


def test_relative_figures_do_not_change_with_the_scale_of_the_weights() -> None:
    """Values twice as large, and output projections and downs that make up for it: the same function of the input."""
    config = MeasuredFlatness(samples=4, curvature_samples=4, length=6, products=6, eigenvalues=3, iterations=20)
    model = tiny_llama()
    rescaled = deepcopy(model)
    with torch.no_grad():
        for layer in rescaled.model.layers:
            for reader, writer in (
                (layer.self_attn.o_proj, layer.self_attn.v_proj),
                (layer.mlp.down_proj, layer.mlp.up_proj),
            ):
                reader.weight /= 2
                writer.weight *= 2
    found = []
    for own in (model, rescaled):
        with differentiable_twice(own, NAMES):
            found.append(flatness_figures(LossLandscape(own, NAMES, BLOCKS, 4), BLOCKS, config))
    one, other = found
    assert other["trH"] == pytest.approx(4 * one["trH"], rel=1e-4)
    same = ["loss", "tic", "sam_0.001", "avg", *(name for name in one if name.endswith("_relative"))]
    assert len(same) == 4 + 4 + 3
    assert {name: other[name] for name in same} == pytest.approx({name: one[name] for name in same}, rel=1e-3)
    assert one["trC_per_parameter"] == one["trC"] / one["parameters"]
    assert one["epsilon_per_parameter"] == one["epsilon"] / math.sqrt(one["parameters"])
    assert one["lmax_relative"] == one["lmax"] * one["weight_norm"] ** 2
    assert one["tic"] == one["trC"] / one["topk_sum"]
    assert one["trGGN_relative"] == pytest.approx(one["trGGN"] * one["weight_norm"] ** 2 / one["parameters"])
