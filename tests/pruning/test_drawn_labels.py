"""Next tokens that the model draws itself: their distribution, and the Fisher information that they give."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare
from torch.nn import functional
from transformers import PreTrainedModel

from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.importance.gradients import (
    batch_loss,
    draw_tokens,
    drawn_label_gradient,
    label_places,
    next_token_logits,
    text_label_gradient,
)
from pruning.importance.unit_mask import Labels, MaskOrder, MaskUnit, UnitMask
from pruning.units import UnitGroup, UnitKind
from tests.pruning.test_importance import state_of
from tests.zoo import SIZES, _make

VOCABULARY = 9


@pytest.fixture
def tiny() -> PreTrainedModel:
    """A model of few tokens, so that all of them can be summed over, and sure enough of some to make a difference."""
    torch.manual_seed(2)
    sizes = {"vocab_size": VOCABULARY, "intermediate_size": 10, "num_hidden_layers": 2}
    return _make("Llama", SIZES | sizes, num_key_value_heads=4, initializer_range=0.3)().eval()


def tokens(samples: int = 3, length: int = 5) -> torch.Tensor:
    return torch.randint(2, VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(0))


def groups_of(model: PreTrainedModel) -> dict[str, UnitGroup]:
    groups = find_units(model, find_layout(model))
    chosen = ("layers.0.attention", "layers.1.query_heads", "layers.0.mlp", "layers.1.mlp_layer")
    return {name: groups[name] for name in chosen}


def test_labels_follow_the_models_distribution() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, -torch.inf, 1.1, 0.0, -4.0])
    places = torch.rand(20000, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    drawn = draw_tokens(logits.softmax(dim=-1).expand(len(places), -1), places).bincount(minlength=len(logits))
    possible = logits.isfinite()
    assert not drawn[~possible].any()
    expected = logits.double().softmax(dim=-1)[possible] * len(places)
    assert chisquare(drawn[possible].numpy(), expected.numpy()).pvalue > 0.01


def test_a_label_is_the_token_whose_share_of_the_distribution_holds_the_place() -> None:
    places = torch.tensor([0.0, 0.0999, 0.1001, 0.2999, 0.5999, 0.99999], dtype=torch.float64)
    chances = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]).expand(6, -1)
    assert draw_tokens(chances, places).tolist() == [1, 1, 2, 2, 3, 4]


def test_what_cannot_follow_is_never_drawn() -> None:
    chances = torch.tensor([0.0, 0.3, 0.7, 0.0, 0.0]).expand(2, -1)
    assert draw_tokens(chances, torch.tensor([0.0, 1 - 1e-12], dtype=torch.float64)).tolist() == [1, 2]


def test_places_are_the_same_for_a_seed_and_uniform() -> None:
    samples = torch.zeros(40, 51, dtype=torch.long)
    places = label_places(samples, seed=3)
    assert places.shape == (40, 50)
    assert torch.equal(places, label_places(samples, seed=3))
    assert not torch.equal(places, label_places(samples, seed=4))
    assert 0 <= float(places.min()) < 0.01
    assert 0.99 < float(places.max()) < 1
    assert float(places.mean()) == pytest.approx(0.5, abs=0.03)


def test_the_gradient_is_that_of_the_mean_loss_on_the_drawn_tokens(tiny: PreTrainedModel) -> None:
    places = label_places(tokens(), seed=1)
    logits = tiny(tokens()).logits[:, :-1].detach().double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for sample, row in enumerate(places):
        for position, place in enumerate(row):
            chances = logits[sample, position].softmax(dim=-1)
            label = int((chances.cumsum(dim=0) <= place).sum())
            total = total - chances[label].log()
    (total / places.numel()).backward()
    found = drawn_label_gradient(next_token_logits(tiny, tokens()).detach(), places)
    assert logits.grad is not None
    assert torch.allclose(found.double(), logits.grad, atol=1e-7)
    text = functional.cross_entropy(logits.detach().flatten(0, 1), tokens()[:, 1:].flatten())
    assert batch_loss(tiny, tokens()).item() == pytest.approx(float(text), rel=1e-5)


def test_the_gradient_of_the_texts_own_labels_is_that_of_its_loss(tiny: PreTrainedModel) -> None:
    logits = tiny(tokens()).logits[:, :-1].detach().double().requires_grad_()
    functional.cross_entropy(logits.flatten(0, 1), tokens()[:, 1:].flatten()).backward()
    assert logits.grad is not None
    assert torch.allclose(text_label_gradient(logits.detach(), tokens()[:, 1:]), logits.grad, atol=1e-12)


def test_a_model_that_is_not_finite_is_named_as_such(tiny: PreTrainedModel) -> None:
    with torch.no_grad():
        tiny.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"score of unit .* is nan: cannot rank it"):
        UnitMask(labels=Labels.model).score(tiny, groups_of(tiny), tokens())


@pytest.mark.parametrize("order", list(MaskOrder))
def test_scores_depend_on_the_seed_and_not_on_the_batches(tiny: PreTrainedModel, order: MaskOrder) -> None:
    estimator = UnitMask(order=order, labels=Labels.model, label_seed=7)
    groups, samples = groups_of(tiny), tokens(7)
    before = state_of(tiny)
    whole = estimator.score(tiny, groups, samples)
    for variant in ({"batch_size": 1}, {"batch_size": 3}, {"checkpointing": True}, {}):
        for name, values in replace(estimator, **variant).score(tiny, groups, samples).items():
            assert torch.allclose(values, whole[name], rtol=1e-3, atol=1e-6 * float(whole[name].max()))
    assert state_of(tiny) == before
    for other in (replace(estimator, label_seed=8), replace(estimator, labels=Labels.text)):
        found = other.score(tiny, groups, samples)
        assert all(not torch.allclose(values, whole[name], rtol=0.01) for name, values in found.items())


def fisher(model: PreTrainedModel, group: UnitGroup, sample: torch.Tensor, per: MaskUnit) -> torch.Tensor:
    """The Fisher information of the masks (U,) of one group: all tokens summed over by their chances, one gradient each.

    Labels at different places are independent and their derivatives have mean zero, so the square of the mean of the places'
    derivatives has the expectation of their squares' sum over the square of their number.
    """
    mask = torch.ones(len(sample), group.num_units, requires_grad=True)

    def apply(activation: torch.Tensor) -> torch.Tensor:
        if group.kind.is_depth:
            return activation * mask.view(1, -1, 1)
        columns = torch.ones(len(sample), activation.shape[-1])
        for unit in range(group.num_units):
            columns = columns.index_copy(
                1,
                group.slices[-1].indices[unit],
                mask[:, unit : unit + 1].expand(-1, group.slices[-1].indices.shape[1]),
            )
        return activation * columns

    handles = []
    for reader in group.readers:
        module = model.get_submodule(reader)
        if group.kind.is_depth:
            handles.append(module.register_forward_hook(lambda module, inputs, output: apply(output)))
        else:
            handles.append(module.register_forward_pre_hook(lambda module, inputs: (apply(inputs[0]),)))
    logs = model(sample[None]).logits[0, :-1].double().log_softmax(dim=-1)
    total = torch.zeros(group.num_units, dtype=torch.float64)
    for place in range(len(logs)):
        for token in range(VOCABULARY):
            (slope,) = torch.autograd.grad(logs[place, token], mask, retain_graph=True)
            slope = slope.double() if per is MaskUnit.token else slope.double().sum(dim=0, keepdim=True)
            total += float(logs[place, token].exp()) * slope.square().sum(dim=0)
    for handle in handles:
        handle.remove()
    return total / len(logs) ** 2


@pytest.mark.parametrize("per", list(MaskUnit))
def test_drawn_labels_give_the_fisher_information_on_average(tiny: PreTrainedModel, per: MaskUnit) -> None:
    """And the text's labels do not."""
    samples, copies = tokens(), 2000
    groups = groups_of(tiny)
    assert {group.kind for group in groups.values()} >= {UnitKind.kv_group, UnitKind.mlp_channel, UnitKind.mlp_layer}
    drawn = UnitMask(per=per, labels=Labels.model, batch_size=1000).score(tiny, groups, samples.repeat(copies, 1))
    empirical = UnitMask(per=per).score(tiny, groups, samples)
    for name, group in groups.items():
        exact = torch.stack([fisher(tiny, group, sample, per) for sample in samples]).mean(dim=0)
        assert torch.allclose(drawn[name].double(), exact, rtol=0.08, atol=0.02 * float(exact.max()))
        assert not torch.allclose(empirical[name].double(), exact, rtol=0.3, atol=0.1 * float(exact.max()))
