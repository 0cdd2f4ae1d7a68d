"""Unit masks, activation-aware scores and reconstruction against slow, obvious computations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.families import declared_layout
from pruning.grouping import find_units
from pruning.importance.activation import ActivationImportance, ActivationMetric
from pruning.importance.activations import InputMoments, stream_input_moments
from pruning.importance.reconstruction import Reconstruction, refit_errors
from pruning.importance.unit_mask import MaskOrder, MaskUnit, UnitMask
from pruning.units import UnitGroup, UnitKind
from tests.conftest import build

FAMILIES = ["llama_biased", "llama_gqa_tied", "phi3", "gpt2", "opt", "falcon_grouped"]
"""Biases and grouped heads, fused projections, stored inputs first, samples and tokens flattened, interleaved heads."""


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(2, 258, (5, 12), generator=torch.Generator().manual_seed(0))


def groups_of(model: PreTrainedModel, *, depth: bool) -> dict[str, UnitGroup]:
    layout = declared_layout(model)
    assert layout is not None
    groups = find_units(model, layout)
    return {n: g for n, g in groups.items() if g.layer == 2 and g.readers and (depth or not g.kind.is_depth)}


def loss_of(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(tokens).logits[:, :-1].double()
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def mask_derivatives(model: PreTrainedModel, group: UnitGroup, sample: torch.Tensor) -> torch.Tensor:
    """Derivative of one sample's loss by a mask on every unit at every token, (T, U): the mask is really there."""
    mask = torch.ones(sample.shape[1], group.num_units, requires_grad=True)

    def apply(activation: torch.Tensor) -> torch.Tensor:
        owner = torch.zeros(activation.shape[-1], dtype=torch.long)
        if not group.kind.is_depth:
            for unit in range(group.num_units):
                owner[group.slices[-1].indices[unit]] = unit
        return activation * mask[:, owner].view(activation.shape)

    handles = []
    for reader in group.readers:
        module = model.get_submodule(reader)
        if group.kind.is_depth:
            handles.append(module.register_forward_hook(lambda module, inputs, output: apply(output)))
        else:
            handles.append(module.register_forward_pre_hook(lambda module, inputs: (apply(inputs[0]),)))
    (found,) = torch.autograd.grad(loss_of(model, sample), mask)
    for handle in handles:
        handle.remove()
    return found.double()


MASKS: dict[str, tuple[UnitMask, Callable[[torch.Tensor], torch.Tensor]]] = {
    "first": (UnitMask(order=MaskOrder.first), lambda d: d.sum(dim=1).mean(dim=0).abs()),
    "sequence": (UnitMask(per=MaskUnit.sequence), lambda d: d.sum(dim=1).square().mean(dim=0)),
    "token": (UnitMask(per=MaskUnit.token), lambda d: d.square().sum(dim=1).mean(dim=0)),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_unit_mask_is_the_derivative_by_a_mask(family: str, tokens: torch.Tensor, batch_size: int | None) -> None:
    model = build(family)
    groups = groups_of(model, depth=True)
    assert {group.kind for group in groups.values()} >= {UnitKind.kv_group, UnitKind.mlp_channel, UnitKind.layer}
    for group in groups.values():
        samples = tokens.split(1)
        derivatives = torch.stack([mask_derivatives(model, group, sample) for sample in samples])  # (N, T, U)
        for estimator, formula in MASKS.values():
            estimator.batch_size = batch_size
            found = estimator.score(model, {group.name: group}, tokens)[group.name].double()
            expected = formula(derivatives)
            assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.max())), group.name


def inputs_of_reader(model: PreTrainedModel, reader: str, tokens: torch.Tensor) -> torch.Tensor:
    """What goes into a linear map, (all tokens, I), one sample at a time."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(reader).register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].detach().reshape(-1, inputs[0].shape[-1]))
    )
    with torch.no_grad():
        for sample in tokens.split(1):
            model(sample)
    handle.remove()
    return torch.cat(seen).double()


def weight_of_reader(model: PreTrainedModel, reader: str) -> torch.Tensor:
    """(outputs, inputs): what a linear map does to the unit vectors, without its bias."""
    linear: Any = model.get_submodule(reader)
    width = int(linear.weight.shape[0] if type(linear).__name__ == "Conv1D" else linear.weight.shape[1])
    with torch.no_grad():
        zero = linear(torch.zeros(1, width, dtype=linear.weight.dtype))
        return (linear(torch.eye(width, dtype=linear.weight.dtype)) - zero).T.double()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("metric", list(ActivationMetric))
def test_activation_scores_are_the_formula(family: str, tokens: torch.Tensor, metric: ActivationMetric) -> None:
    model = build(family)
    groups = groups_of(model, depth=False)
    found = ActivationImportance(metric=metric, batch_size=2).score(model, groups, tokens)
    for name, group in groups.items():
        x, w = inputs_of_reader(model, group.readers[0], tokens), weight_of_reader(model, group.readers[0])
        for unit in range(group.num_units):
            expected = 0.0
            for c in group.slices[-1].indices[unit].tolist():
                if metric is ActivationMetric.wanda:
                    expected += float(w[:, c].abs().sum() * x[:, c].square().mean().sqrt())
                else:
                    expected += float(w[:, c].square().sum() * x[:, c].var())
            assert float(found[name][unit]) == pytest.approx(expected, rel=1e-3)


def test_the_variance_of_inputs_far_from_zero_is_not_lost(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    reader = "model.layers.1.mlp.down_proj"
    llama.get_submodule(reader).register_forward_pre_hook(lambda module, inputs: (1000 + inputs[0],))
    found: dict[str, InputMoments] = {}
    stream_input_moments(llama, [reader], tokens, found.__setitem__, batch_size=2)
    moments = found[reader]
    variance = moments.mean_square - moments.mean.square()
    expected = (inputs_of_reader(llama, reader, tokens)).var(dim=0, correction=0)
    assert moments.count == tokens.numel()
    assert torch.allclose(variance, expected, rtol=0.05)


def refit_error(x: torch.Tensor, weight: torch.Tensor, unit: torch.Tensor, penalty: float) -> float:
    """Least sum of squared errors, per row of x, of predicting x W^T without the unit's inputs.

    A ridge is so many more rows, each with one input switched on.
    """
    x_all = torch.cat((x, (penalty * len(x)) ** 0.5 * torch.eye(x.shape[1], dtype=x.dtype)))
    kept = [c for c in range(x.shape[1]) if c not in unit.tolist()]
    target = x_all @ weight.T
    solution = torch.linalg.lstsq(x_all[:, kept], target, driver="gelsd").solution
    return float((x_all[:, kept] @ solution - target).square().sum() / len(x))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ridge", [1e-4, 0.05])
def test_reconstruction_is_the_error_of_a_least_squares_refit(family: str, ridge: float) -> None:
    model = build(family).double()
    tokens = torch.randint(2, 258, (8, 20), generator=torch.Generator().manual_seed(1))  # 160 tokens, at most 64 inputs
    groups = groups_of(model, depth=False)
    found = Reconstruction(ridge=ridge, batch_size=3).score(model, groups, tokens)
    for name, group in groups.items():
        x, w = inputs_of_reader(model, group.readers[0], tokens), weight_of_reader(model, group.readers[0])
        penalty = ridge * float(x.square().mean())
        for unit in range(0, group.num_units, max(1, group.num_units // 6)):
            expected = refit_error(x, w, group.slices[-1].indices[unit], penalty)
            assert float(found[name][unit]) == pytest.approx(expected, rel=1e-4)


def test_errors_of_large_blocks_are_solved_one_by_one() -> None:
    """Three blocks of 192 of 576 inputs, as KV groups of a real model are."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(700, 576, generator=generator, dtype=torch.float64)
    inverse = torch.linalg.inv(x.T @ x / len(x) + 0.01 * torch.eye(576))
    weight = torch.randn(64, 576, generator=generator, dtype=torch.float64)
    indices = torch.randperm(576, generator=generator).view(3, 192)
    for unit, found in zip(indices, refit_errors(weight, inverse, indices), strict=True):
        solved = torch.linalg.lstsq(inverse[unit][:, unit], weight[:, unit].T).solution
        assert float(found) == pytest.approx(float((weight[:, unit].T * solved).sum()), rel=1e-9)


def test_a_block_that_is_not_positive_definite_has_no_error() -> None:
    inverse = torch.diag(torch.tensor([1.0, 2.0, -1.0, 4.0], dtype=torch.float64))
    found = refit_errors(torch.ones(1, 4, dtype=torch.float64), inverse, torch.tensor([[0, 1], [2, 3]]))
    assert found[0] == pytest.approx(1.5)
    assert found[1].isnan()


def test_reconstruction_needs_no_ridge_when_tokens_span_the_inputs(llama: PreTrainedModel) -> None:
    tokens = torch.randint(2, 258, (8, 20), generator=torch.Generator().manual_seed(1))
    group = groups_of(llama.double(), depth=False)["layers.2.attention"]
    found = Reconstruction(ridge=0).score(llama, {group.name: group}, tokens)[group.name]
    x, w = inputs_of_reader(llama, group.readers[0], tokens), weight_of_reader(llama, group.readers[0])
    for unit in range(group.num_units):
        expected = refit_error(x, w, group.slices[-1].indices[unit], 0)
        assert float(found[unit]) == pytest.approx(expected, rel=1e-4)


def test_reconstruction_without_a_ridge_needs_more_tokens_than_inputs(
    llama: PreTrainedModel, tokens: torch.Tensor
) -> None:
    groups = groups_of(llama, depth=False)
    with pytest.raises(ValueError, match=r"importance\.ridge=0: too small for the inputs of model\.layers\.2"):
        Reconstruction(ridge=0).score(llama, groups, tokens[:2])


def test_moments_are_handed_out_while_the_model_runs_when_there_is_one_batch(
    llama: PreTrainedModel, tokens: torch.Tensor
) -> None:
    readers = [f"model.layers.{index}.mlp.down_proj" for index in range(4)]
    events: list[str] = []
    for index, reader in enumerate(readers):
        llama.get_submodule(reader).register_forward_hook(lambda *_, index=index: events.append(f"ran {index}"))
    for batch_size, expected in (
        (None, ["got 0", "ran 0", "got 1", "ran 1", "got 2", "ran 2", "got 3", "ran 3"]),
        (3, [*(f"ran {index}" for index in range(4)), *(f"{what} {i}" for i in range(4) for what in ("got", "ran"))]),
    ):
        events.clear()
        stream_input_moments(
            llama,
            readers,
            tokens,
            lambda reader, moments: events.append(f"got {readers.index(reader)}"),
            batch_size=batch_size,
            second=True,
        )
        assert events == expected


def test_a_reader_that_does_not_run_is_an_error(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    llama.add_module("unused", nn.Linear(3, 3))
    with pytest.raises(ValueError, match="unused is not used by the model"):
        stream_input_moments(llama, ["unused"], tokens, lambda *_: None)
