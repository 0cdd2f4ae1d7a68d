"""Magnitude and Taylor scores against slow loops over rows, columns and units."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from pruning.families import declared_layout
from pruning.grouping import find_units
from pruning.importance.base import Aggregation
from pruning.importance.gradients import fold_gradients
from pruning.importance.magnitude import Magnitude
from pruning.importance.reduction import channel_sums, power_sums
from pruning.importance.taylor import Formulas, Taylor, TaylorOrder
from pruning.units import UnitGroup, UnitKind, UnitSlice, positions
from tests.conftest import build

FAMILIES = ["llama_biased", "phi3", "gpt2", "falcon_grouped", "olmo2", "qwen3_moe"]
"""Biases and grouped heads, fused projections, stored inputs first, interleaved heads, norms over heads, experts."""

Values = dict[str, torch.Tensor]
Channel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], float]


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(2, 258, (5, 12), generator=torch.Generator().manual_seed(0))


def groups_of(model: PreTrainedModel) -> dict[str, UnitGroup]:
    layout = declared_layout(model)
    assert layout is not None
    return find_units(model, layout)


def layer_two(groups: dict[str, UnitGroup]) -> dict[str, UnitGroup]:
    """One layer is enough for loops this slow."""
    return {name: group for name, group in groups.items() if group.layer == 2}


def gradients(model: PreTrainedModel, tokens: torch.Tensor) -> Values:
    """Gradient of the mean next-token loss, the loss written out."""
    logits = model(tokens).logits[:, :-1].double()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))


def row(values: torch.Tensor, piece: UnitSlice, position: int) -> torch.Tensor:
    """The numbers at one position of a slice."""
    where = np.unravel_index(position, [values.shape[dim] for dim in piece.dims])
    for dim, index in sorted(zip(piece.dims, where, strict=True), reverse=True):
        values = values.select(dim, int(index))
    return values.double()


def slow_matrices(group: UnitGroup, unit: int, score: Callable[[UnitSlice, int], float]) -> list[float]:
    """Scores of a unit's matrices: rows or columns added up one by one, biases with the weight before them."""
    found: list[float] = []
    for piece in group.slices:
        total = sum(score(piece, int(position)) for position in piece.indices[unit])
        if piece.parameter.endswith(".bias"):
            found[-1] += total
        else:
            found.append(total)
    return found


def assert_close(found: torch.Tensor, expected: list[float], units: range) -> None:
    chosen = found[list(units)].double()
    wanted = torch.tensor(expected, dtype=torch.float64)
    assert torch.allclose(chosen, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


def some(group: UnitGroup) -> range:
    return range(0, group.num_units, max(1, group.num_units // 8))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("order", list(TaylorOrder))
@pytest.mark.parametrize("formulas", list(Formulas))
def test_taylor_is_the_formula(family: str, tokens: torch.Tensor, order: TaylorOrder, formulas: Formulas) -> None:
    model = build(family)
    groups = layer_two(groups_of(model))
    mean = gradients(model, tokens)
    singles = [gradients(model, tokens[i : i + 1]) for i in range(len(tokens))]

    def score(piece: UnitSlice, position: int) -> float:
        if formulas is Formulas.code and piece.parameter.endswith("bias"):
            return 0.0
        w = row(model.get_parameter(piece.parameter).detach(), piece, position)
        g = row(mean[piece.parameter], piece, position)
        squares = sum((w * row(single[piece.parameter], piece, position)) ** 2 for single in singles)
        if formulas is Formulas.paper:
            second, in_mixed = squares / 2, squares / 2
        else:
            second, in_mixed = squares / len(singles), squares / len(singles) / 2
        return {
            TaylorOrder.vector: (w * g).sum().abs(),
            TaylorOrder.first: (w * g).abs().sum(),
            TaylorOrder.second: second.sum(),
            TaylorOrder.mixed: (w * g - in_mixed).abs().sum(),
        }[order].item()

    found = Taylor(order=order, formulas=formulas).score(model, groups, tokens)
    for name, group in groups.items():
        if formulas is Formulas.code and group.kind is UnitKind.kv_group:
            continue  # below
        expected = [sum(slow_matrices(group, unit, score)) for unit in some(group)]
        assert_close(found[name], expected, some(group))


@pytest.mark.parametrize("dims", [(0,), (2,), (0, 1), (0, 2), (2, 0), (2, 0, 1)])
def test_sums_are_counted_through_dims_as_positions_are(dims: tuple[int, ...]) -> None:
    values = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    rows = positions(values, dims)
    assert torch.allclose(channel_sums(values, dims), rows.sum(dim=1), atol=1e-5)
    for power in (1, 2):
        assert torch.allclose(power_sums(values, dims, power), (rows.abs() ** power).sum(dim=1), rtol=1e-5)


def test_the_hidden_width_is_scored_with_the_embedding(tokens: torch.Tensor) -> None:
    model = build("llama_gqa_tied")
    groups = groups_of(model)
    mean = gradients(model, tokens)

    def score(piece: UnitSlice, position: int) -> float:
        w = row(model.get_parameter(piece.parameter).detach(), piece, position)
        return (w * row(mean[piece.parameter], piece, position)).abs().sum().item()

    found = Taylor().score(model, {"hidden": groups["hidden"]}, tokens)["hidden"]
    assert_close(found, [sum(slow_matrices(groups["hidden"], unit, score)) for unit in (0, 4)], range(0, 5, 4))


@pytest.mark.parametrize("aggregation", list(Aggregation))
def test_the_code_pairs_kv_heads_with_other_heads_query_heads(tokens: torch.Tensor, aggregation: Aggregation) -> None:
    model = build("llama_gqa_tied")  # 8 query heads, 4 KV heads of 8 numbers
    mean = gradients(model, tokens)
    prefix = "model.layers.1.self_attn"

    def channel(projection: str, dim: int, index: int) -> float:
        w = model.get_parameter(f"{prefix}.{projection}.weight").detach().select(dim, index)
        return (w * mean[f"{prefix}.{projection}.weight"].select(dim, index)).abs().sum().item()

    def aggregate(values: list[float]) -> float:
        return {
            Aggregation.sum: sum(values),
            Aggregation.mean: sum(values) / 4,
            Aggregation.max: max(values),
            Aggregation.prod: math.prod(values) ** 0.25,
            Aggregation.last: values[-1],
        }[aggregation]

    expected = []
    for head in range(4):
        total = 0.0
        for number in range(8):
            queries = [query * 8 + number for query in (head, head + 4)]
            q, o = (sum(channel(name, dim, i) for i in queries) for name, dim in (("q_proj", 0), ("o_proj", 1)))
            k, v = (channel(name, 0, head * 8 + number) for name in ("k_proj", "v_proj"))
            total += aggregate([q, k, v, o])
        expected.append(total)
    groups = {"layers.1.attention": groups_of(model)["layers.1.attention"]}
    found = Taylor(formulas=Formulas.code, aggregation=aggregation).score(model, groups, tokens)["layers.1.attention"]
    assert_close(found, expected, range(4))
    true = Taylor(aggregation=aggregation).score(model, groups, tokens)["layers.1.attention"]
    assert not torch.allclose(found, true, rtol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("aggregation", list(Aggregation))
def test_magnitude_is_the_norm_of_the_coupled_weights(family: str, power: int, aggregation: Aggregation) -> None:
    model = build(family)
    groups = layer_two(groups_of(model))
    if aggregation is Aggregation.last:
        groups = {name: group for name, group in groups.items() if not group.kind.is_depth}

    def score(piece: UnitSlice, position: int) -> float:
        return (row(model.get_parameter(piece.parameter).detach(), piece, position).abs() ** power).sum().item()

    found = Magnitude(power=power, aggregation=aggregation).score(model, groups, None)
    for name, group in groups.items():
        expected = []
        for unit in some(group):
            matrices = slow_matrices(group, unit, score)
            total = {
                Aggregation.sum: sum(matrices),
                Aggregation.mean: sum(matrices) / len(matrices),
                Aggregation.max: max(matrices),
                Aggregation.prod: math.exp(sum(map(math.log, matrices)) / len(matrices)),
                Aggregation.last: matrices[-1],
            }[aggregation]
            expected.append(total ** (1 / power))
        assert_close(found[name], expected, some(group))


def test_a_product_with_a_zero_is_zero_and_tiny_products_keep_their_order() -> None:
    model = build("llama_mha")
    group = groups_of(model)["layers.0.attention"]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-15)
        model.get_parameter("model.layers.0.self_attn.v_proj.weight")[8:16] = 0
    plain, product = (
        Magnitude(power=1, aggregation=how).score(model, {group.name: group}, None)[group.name]
        for how in (Aggregation.sum, Aggregation.prod)
    )
    assert product[1] == 0
    assert plain[1] > 0
    assert len(product.unique()) == 8


@pytest.mark.parametrize("name", ["hidden", "layers.1.mlp_layer"])
def test_what_has_no_last_matrix_is_refused_by_last(llama: PreTrainedModel, name: str) -> None:
    with pytest.raises(ValueError, match=rf"importance\.aggregation=last: {name}"):
        Magnitude(aggregation=Aggregation.last).score(llama, {name: groups_of(llama)[name]}, None)


def test_second_order_does_not_underflow_in_half_precision(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    half = copy.deepcopy(llama).half()
    with torch.no_grad():
        half.lm_head.weight.mul_(0.002)
    name = "model.layers.1.mlp.up_proj.weight"
    largest = gradients(half, tokens)[name].abs().max()
    assert largest.square() == 0  # what summing squares in 16 bits would add up
    groups = {"layers.1.mlp": groups_of(half)["layers.1.mlp"]}
    scores = Taylor(order=TaylorOrder.second).score(half, groups, tokens)["layers.1.mlp"]
    assert (scores > 0).all()
    assert len(scores.unique()) == len(scores)


def test_sixteen_bit_weights_are_scored_in_thirty_two(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    half = copy.deepcopy(llama).bfloat16()
    wide = copy.deepcopy(half).float()
    groups = groups_of(half)
    for power in (1, 2):
        rounded, exact = (Magnitude(power=power).score(model, groups, None) for model in (half, wide))
        assert all(torch.allclose(rounded[name], exact[name], rtol=1e-5) for name in groups)


def test_a_parameter_without_a_gradient_is_an_error(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    llama.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    names = ["unused", "model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match="unused got 0 gradients from 3 backward passes"):
        fold_gradients(llama, names, tokens, lambda *_: None, batch_size=2)


def test_gradients_are_folded_one_at_a_time(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    names = [name for name, _ in llama.named_parameters()]
    held, shares, folded = [], [], []

    def fold(name: str, weight: torch.Tensor, gradient: torch.Tensor, share: float) -> None:
        held.append(sum(parameter.grad is not None for parameter in llama.parameters()))
        shares.append(share)
        folded.append(name)

    fold_gradients(llama, names, tokens, fold, batch_size=4)
    assert set(held) == {0}
    assert sorted(folded) == sorted(names * 2)
    assert shares == [0.8] * len(names) + [0.2] * len(names)


def test_what_mixed_keeps_is_bounded_by_a_fifth_of_the_weights(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    names = {
        piece.parameter for group in groups_of(llama).values() for piece in group.slices if group.layer is not None
    }
    weights = sum(4 * parameter.numel() for parameter in llama.parameters())
    per_layer = sum(4 * llama.get_parameter(name).numel() for name in names) / 4  # layers
    many = Taylor(order=TaylorOrder.mixed)._affordable_layers(llama, names, len(tokens))
    assert many == max(1, int(weights / 5 / per_layer))
    assert Taylor(order=TaylorOrder.first, batch_size=2)._affordable_layers(llama, names, len(tokens)) == many
    for needs_no_copy in (Taylor(), Taylor(order=TaylorOrder.second), Taylor(order=TaylorOrder.vector, batch_size=1)):
        assert needs_no_copy._affordable_layers(llama, names, len(tokens)) is None
