"""Choosing with matrix products in bfloat16: where it is done, what is computed in which type, and what it comes to."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from pruning.allocation import Allocator
from pruning.autocast import computes_in_bfloat16, is_in_bfloat16
from pruning.cache import Cache
from pruning.compensation.base import Correction
from pruning.compensation.least_squares import LeastSquares
from pruning.config import PruningConfig
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.importance.base import ImportanceEstimator
from pruning.importance.magnitude import Magnitude
from pruning.importance.scoring import UnitScores
from pruning.importance.taylor import Taylor
from pruning.importance.unit_mask import MaskUnit, UnitMask
from pruning.rounds import Chooser
from pruning.units import PruningPlan
from recovery.lora import Lora
from tests.pruning.test_importance import state_of

TEXT = torch.randint(2, 64, (12, 16), generator=torch.Generator().manual_seed(0))
FISHER = UnitMask(per=MaskUnit.token)
REPAIR = LeastSquares(gains=True, gain_samples=6, samples=12)


def choose(
    model: PreTrainedModel, cache: Cache, bf16: bool | str, estimator: ImportanceEstimator = FISHER
) -> tuple[UnitScores, PruningPlan, dict[str, Correction]]:
    layout = find_layout(model)
    allocator = Allocator(PruningConfig(ratio=0.2, protect_first=0, protect_last=0, bf16=bf16), model, layout, cache)
    chooser = Chooser(estimator, REPAIR, allocator, cache, TEXT[:8], TEXT)
    return chooser.choose(model, allocator.touched(find_units(model, layout)), 0.0, 0.2)


def types_seen(model: PreTrainedModel) -> set[torch.dtype]:
    seen: set[torch.dtype] = set()
    model.get_submodule("model.layers.1.mlp.up_proj").register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    return seen


@pytest.mark.parametrize("estimator", [FISHER, Taylor()])
def test_all_passes_over_the_text_are_in_bfloat16_and_the_result_is_nearly_the_same(
    llama: PreTrainedModel, cache: Cache, estimator: ImportanceEstimator
) -> None:
    exact_model, seen = copy.deepcopy(llama), types_seen(llama)
    before = state_of(llama)
    scores, plan, corrections = choose(llama, cache, True, estimator)
    assert seen == {torch.bfloat16}
    assert state_of(llama) == before
    exact_seen = types_seen(exact_model)
    exact, _, exact_corrections = choose(exact_model, cache, False, estimator)
    assert exact_seen == {torch.float32}  # nothing is taken out of the cache that was computed in the other type
    for name, values in exact.values.items():
        assert scores.values[name].dtype == torch.float32
        assert not torch.equal(scores.values[name], values)
        difference = (scores.values[name] - values).norm() / values.norm()
        assert difference < 0.05
    assert corrections.keys() == exact_corrections.keys()
    assert {found.weight.dtype for found in corrections.values() if found.weight is not None} == {torch.float32}
    assert plan.ratio_reached == pytest.approx(0.2, abs=0.02)


def test_what_is_in_the_cache_is_found_again(llama: PreTrainedModel, cache: Cache) -> None:
    first, plan, _ = choose(llama, cache, True)
    again, same_plan, _ = choose(llama, cache, True)
    assert all(torch.equal(values, again.values[name]) for name, values in first.values.items())
    assert plan == same_plan


def test_scores_of_weights_do_not_depend_on_it(llama: PreTrainedModel, cache: Cache) -> None:
    choose(llama, cache, True, Magnitude())
    entries = set(cache.root.glob("scores/*"))
    choose(llama, cache, False, Magnitude())
    assert set(cache.root.glob("scores/*")) == entries != set()


@pytest.mark.parametrize("able", [True, False])
def test_auto_asks_the_processor(llama: PreTrainedModel, able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": able})
    assert computes_in_bfloat16(llama.device) is able
    assert is_in_bfloat16("auto", llama) is able
    assert is_in_bfloat16(True, llama)
    assert not is_in_bfloat16(False, llama)
    assert not is_in_bfloat16("auto", llama.to(torch.bfloat16))  # which needs no autocast


def test_the_processor_of_this_machine_is_known() -> None:
    assert computes_in_bfloat16(torch.device("cpu")) in (True, False)
    assert not computes_in_bfloat16(torch.device("meta"))


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pruning\.bf16=yes: must be true, false, or auto"):
        PruningConfig(bf16="yes")
    with pytest.raises(ValueError, match=r"recovery\.bf16=maybe: must be true, false, or auto"):
        Lora(bf16="maybe")
