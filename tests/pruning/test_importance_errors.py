"""What estimators refuse, naming what is wrong, and that a model is restored when they fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.families import declared_layout
from pruning.grouping import find_units
from pruning.importance.activation import ActivationImportance, ActivationMetric
from pruning.importance.base import ImportanceEstimator, Needs
from pruning.importance.gradients import only_trainable
from pruning.importance.magnitude import Magnitude
from pruning.importance.reconstruction import Reconstruction
from pruning.importance.taylor import Taylor
from pruning.importance.unit_mask import UnitMask
from tests.conftest import build
from tests.pruning.test_importance import ESTIMATORS, NORMALISED_OUTPUT, scorable, short, state_of


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(2, 258, (5, 12), generator=torch.Generator().manual_seed(0))


def test_checkpointing_a_model_without_layers_for_it_is_an_error(tokens: torch.Tensor) -> None:
    model = build("baichuan")
    estimator = Taylor(checkpointing=True)
    with pytest.raises(ValueError, match=r"importance\.checkpointing=true: Baichuan"):
        estimator.score(model, scorable(model, "baichuan", estimator), tokens)


@pytest.mark.parametrize(
    "estimator", [Taylor(checkpointing=True), UnitMask(checkpointing=True), Reconstruction()], ids=short
)
def test_the_model_is_restored_after_an_error(
    llama: PreTrainedModel, tokens: torch.Tensor, estimator: ImportanceEstimator
) -> None:
    groups = scorable(llama, "llama_gqa_tied", estimator)
    llama.train()
    before = state_of(llama)
    tokens[3, 4] = 9999  # no such token: the second batch fails
    with pytest.raises(IndexError):
        replace(estimator, batch_size=2).score(llama, groups, tokens)
    assert state_of(llama) == before


def test_only_the_named_parameters_are_trainable_inside_the_block(llama: PreTrainedModel) -> None:
    llama.train()
    with only_trainable(llama, {"model.norm.weight"}):
        assert [name for name, p in llama.named_parameters() if p.requires_grad] == ["model.norm.weight"]
        assert not any(module.training for module in llama.modules())


@pytest.mark.parametrize(
    ("estimator", "name", "kind"),
    [
        (UnitMask(), "hidden", "hidden"),
        (Reconstruction(), "layers.0.experts", "expert"),
        (ActivationImportance(), "layers.2.expert_channels", "mlp_channel"),
        (ActivationImportance(metric=ActivationMetric.fluctuation), "layers.1.mlp_layer", "mlp_layer"),
        (Reconstruction(), "layers.0.layer", "layer"),
    ],
    ids=str,
)
def test_units_that_nothing_reads_are_refused_by_those_that_watch_readers(
    tokens: torch.Tensor, estimator: ImportanceEstimator, name: str, kind: str
) -> None:
    model = build("qwen3_moe")
    layout = declared_layout(model)
    assert layout is not None
    groups = find_units(model, layout)
    with pytest.raises(ValueError, match=rf"cannot score {name}, because {kind} .* use importance=taylor"):
        estimator.score(model, {"layers.1.mlp": groups["layers.1.mlp"], name: groups[name]}, tokens)


@pytest.mark.parametrize("family", NORMALISED_OUTPUT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_on_outputs_that_are_normalised_are_refused(
    family: str, tokens: torch.Tensor, dtype: torch.dtype
) -> None:
    model = build(family).to(dtype)
    layout = declared_layout(model)
    assert layout is not None
    for part in ("attention_layer", "mlp_layer", "layer"):
        group = find_units(model, layout)[f"layers.2.{part}"]
        with pytest.raises(ValueError, match=f"cannot score {group.name}, because the model normalises"):
            UnitMask().score(model, {group.name: group}, tokens)


@pytest.mark.parametrize("estimator", [e for e in ESTIMATORS if e.needs is not Needs.weights], ids=short)
def test_a_sample_that_breaks_the_numbers_is_named(
    llama: PreTrainedModel, tokens: torch.Tensor, estimator: ImportanceEstimator
) -> None:
    groups = {name: g for name, g in scorable(llama, "llama_gqa_tied", estimator).items() if not g.kind.is_depth}
    groups.pop("hidden", None)
    llama.set_output_embeddings(nn.Linear(32, 258, bias=False))
    tokens[:] = tokens.clamp_min(8)
    tokens[3, 5] = 7
    with torch.no_grad():
        llama.get_input_embeddings().weight[7] = torch.inf
    with pytest.raises(ValueError, match=r"unit 0 of layers\.0\.attention is nan.*calibration sample 3 is nan"):
        estimator.score(llama, groups, tokens)


def test_a_score_that_is_not_finite_is_an_error_naming_the_unit(llama: PreTrainedModel) -> None:
    llama.get_parameter("model.layers.2.mlp.up_proj.weight").data[5] = torch.inf
    groups = scorable(llama, "llama_gqa_tied", Magnitude())
    with pytest.raises(ValueError, match=r"unit 5 of layers\.2\.mlp is inf"):
        Magnitude().score(llama, groups, None)


@pytest.mark.parametrize("estimator", [Taylor(), UnitMask(), ActivationImportance(), Reconstruction()], ids=short)
@pytest.mark.parametrize("shape", [(0, 12), (5, 1)])
def test_samples_that_hold_nothing_are_refused(
    llama: PreTrainedModel, estimator: ImportanceEstimator, shape: tuple[int, int]
) -> None:
    groups = {"layers.0.mlp": scorable(llama, "llama_gqa_tied", estimator)["layers.0.mlp"]}
    with pytest.raises(ValueError, match="at least 1 sample of 2 tokens"):
        estimator.score(llama, groups, torch.ones(shape, dtype=torch.long))


@pytest.mark.parametrize(
    ("build_wrong", "message"),
    [
        (lambda: Magnitude(power=3), "importance.power=3"),
        (lambda: Taylor(batch_size=0), "importance.batch_size=0"),
        (lambda: Taylor(layers_at_once=0), "importance.layers_at_once=0"),
        (lambda: UnitMask(batch_size=-1), "importance.batch_size=-1"),
        (lambda: Reconstruction(ridge=-0.1), "importance.ridge=-0.1"),
        (lambda: Reconstruction(layers_at_once=0), "importance.layers_at_once=0"),
    ],
)
def test_values_out_of_range_are_refused(build_wrong: type, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        build_wrong()
