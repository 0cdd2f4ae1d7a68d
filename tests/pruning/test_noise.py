"""Units silenced or disturbed for a while: what the model computes meanwhile, what training reaches, and what comes back."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.masking import masked, silenced
from pruning.model import fingerprint
from pruning.noise import Gaussian, Noise, Zero
from pruning.units import UnitGroup, UnitKind, removed_units
from tests.plans import half_of
from tests.pruning.test_importance import state_of
from tests.zoo import build

K = UnitKind
WIDTHS = (K.kv_group, K.query_head, K.mlp_channel)
STRUCTURES = {"widths": WIDTHS, "sublayers": (K.attention_layer, K.mlp_layer), "layer": (K.layer,)}


def targeted(model: PreTrainedModel, kinds: tuple[UnitKind, ...]) -> tuple[dict[str, UnitGroup], dict[str, list[int]]]:
    """Return the groups that are read by linear maps, and half of the units of the given kinds."""
    found = find_units(model, find_layout(model))
    groups = {name: group for name, group in found.items() if group.readers}
    return groups, removed_units(half_of(groups, kinds), groups)


def logits(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens).logits


def train(model: torch.nn.Module, tokens: torch.Tensor, noise: Noise, before: int = 0, steps: int = 3) -> None:
    """AdamW, with momentum from `before` steps without noise, then `steps` under it."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)

    def step() -> None:
        optimiser.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimiser.step()

    for _ in range(before):
        step()
    with noise.acting():
        for done in range(steps):
            if done:
                noise.renew()
            step()


def zero(model: PreTrainedModel, reentry: str = "restore", kinds: tuple[UnitKind, ...] = WIDTHS) -> Zero:
    groups, removed = targeted(model, kinds)
    return Zero(model, groups, removed, {"steps": 3, "reentry": reentry})


def gaussian(model: PreTrainedModel, **settings: object) -> Gaussian:
    groups, removed = targeted(model, WIDTHS)
    defaults = {"steps": 3, "scale": 1.0, "walk": False, "restore": True, "seed": 5}
    return Gaussian(model, groups, removed, defaults | settings)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_silenced_units_are_masked_units(model: PreTrainedModel, structure: str, tokens: torch.Tensor) -> None:
    groups, removed = targeted(model, STRUCTURES[structure])
    if not removed:
        pytest.skip("only experts, which no linear map reads")
    before, weights, whole = state_of(model), fingerprint(model), logits(model, tokens)
    with masked(model, groups, removed):
        expected = logits(model, tokens)
    with silenced(model, groups, removed):
        assert fingerprint(model) == weights
        found = logits(model, tokens)
    assert state_of(model) == before
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(logits(model, tokens), whole)


@pytest.mark.parametrize("family", ["llama_gqa_tied", "olmo2", "gpt2", "qwen3"])
def test_no_gradient_reaches_silenced_units_and_the_others_get_theirs(family: str, tokens: torch.Tensor) -> None:
    model = build(family)
    noise = zero(model)
    with noise.acting():
        model(input_ids=tokens, labels=tokens).loss.backward()
    for (name, dims), part in noise.parts.items():
        gradient = part.parameter.grad.movedim(dims, tuple(range(len(dims)))).flatten(0, len(dims) - 1)
        others = torch.ones(len(gradient), dtype=torch.bool).index_fill(0, part.indices, False)
        assert not gradient[part.indices].any(), name
        assert gradient[others].any(), name


def test_adapters_are_silenced_too(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    groups, removed = targeted(llama, WIDTHS)
    adapted = get_peft_model(llama, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    adapted.eval()
    with silenced(llama, groups, removed):
        found = logits(adapted, tokens)
    merged = adapted.merge_and_unload()
    with masked(merged, groups, removed):
        expected = logits(merged, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_restored_units_have_the_weights_they_had(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    """Momentum and weight decay move weights without a gradient, too."""
    noise = zero(llama)
    before = {name: parameter.detach().clone() for name, parameter in llama.named_parameters()}
    train(llama, tokens, noise, before=2)
    for name, parameter in llama.named_parameters():
        assert not torch.equal(parameter, before[name])
    for (name, dims), part in noise.parts.items():
        now = parameter_rows(llama.get_parameter(name), dims)[part.indices]
        assert torch.equal(now, parameter_rows(before[name], dims)[part.indices])


def parameter_rows(values: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    (dim,) = dims
    return values.detach().movedim(dim, 0).reshape(values.shape[dim], -1)


@pytest.mark.parametrize("kinds", STRUCTURES.values(), ids=list(STRUCTURES))
def test_units_that_re_enter_at_zero_change_nothing_and_can_grow(
    llama: PreTrainedModel, kinds: tuple[UnitKind, ...], tokens: torch.Tensor
) -> None:
    noise = zero(llama, "zero", kinds)
    with noise.shown():
        expected = logits(llama, tokens)
    with noise.acting():
        pass
    torch.testing.assert_close(logits(llama, tokens), expected, rtol=1e-4, atol=1e-5)
    llama(input_ids=tokens, labels=tokens).loss.backward()
    readers = {f"{reader}.weight" for name in noise.removed for reader in noise.groups[name].readers}
    for name in readers:
        (part,) = (part for (key, _), part in noise.parts.items() if key == name)
        assert not parameter_rows(part.parameter, part.dims)[part.indices].any()
        assert parameter_rows(part.parameter.grad, part.dims)[part.indices].abs().amin(dim=1).max() > 0


def test_with_all_weights_at_zero_no_channel_could_grow(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    groups, removed = targeted(llama, (K.mlp_channel,))
    with masked(llama, groups, removed):
        llama(input_ids=tokens, labels=tokens).loss.backward()
    for name, units in removed.items():
        for piece in groups[name].slices:
            assert not parameter_rows(llama.get_parameter(piece.parameter).grad, piece.dims)[units].any()


def test_noise_is_as_large_as_the_other_units_weights_are_spread(llama: PreTrainedModel) -> None:
    groups, removed = targeted(llama, (K.mlp_channel,))
    noise = Gaussian(llama, groups, removed, {"steps": 1, "scale": 0.5, "walk": False, "restore": True, "seed": 1})
    before = {name: parameter.detach().clone() for name, parameter in llama.named_parameters()}
    with noise.shown():
        after = {name: parameter.detach().clone() for name, parameter in llama.named_parameters()}
    for name, units in removed.items():
        others = [unit for unit in range(48) if unit not in units]
        for projection, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            key = f"model.{name}.{projection}.weight"
            old, new = (values[key].movedim(dim, 0) for values in (before, after))
            assert torch.equal(old[others], new[others])
            spread = 0.5 * old[others].double().std().item()
            assert (new[units] - old[units]).std().item() == pytest.approx(spread, rel=0.15)  # of 24 * 32 draws
    touched = {key for name in removed for key in (piece.parameter for piece in groups[name].slices)}
    assert all(torch.equal(before[name], after[name]) for name in before if name not in touched)
    assert all(torch.equal(before[name], parameter) for name, parameter in llama.named_parameters())


def test_what_is_shown_is_what_training_begins_with(llama: PreTrainedModel, tokens: torch.Tensor) -> None:
    noise = gaussian(llama)
    with noise.shown():
        shown = state_of(llama)
    with noise.acting():
        assert state_of(llama) == shown
    with gaussian(llama, seed=6).shown():
        assert state_of(llama) != shown


@pytest.mark.parametrize(("walk", "variance"), [(False, 1), (True, 4)])
def test_a_walk_adds_up(llama: PreTrainedModel, walk: bool, variance: int) -> None:
    noise = gaussian(llama, walk=walk, restore=False)
    before = {key: part.values.clone() for key, part in noise.parts.items()}
    with noise.acting():
        for _ in range(3):
            noise.renew()
    moved = [
        (parameter_rows(part.parameter, key[1])[part.indices] - before[key]).div(noise.spread[key]).flatten()
        for key, part in noise.parts.items()
        if key in noise.spread
    ]
    assert torch.cat(moved).var().item() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("restore", [True, False])
def test_units_keep_the_noise_only_where_they_are_to(
    llama: PreTrainedModel, restore: bool, tokens: torch.Tensor
) -> None:
    noise = gaussian(llama, restore=restore)
    train(llama, tokens, noise)
    for key, part in noise.parts.items():
        now = parameter_rows(part.parameter, key[1])[part.indices]
        assert torch.equal(now, part.values) is restore


def test_the_identity_tells_noises_apart(llama: PreTrainedModel) -> None:
    noises = [zero(llama), zero(llama, "zero"), zero(llama, kinds=(K.layer,)), gaussian(llama), gaussian(llama, seed=6)]
    assert len({str(noise.identity) for noise in noises}) == 5
    assert zero(llama).identity == zero(llama).identity
