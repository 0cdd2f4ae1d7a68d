"""Choosing in rounds: what earlier rounds chose stays chosen, and one round is scoring and planning."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from transformers import PreTrainedModel

from pruning import latency
from pruning.allocation import Allocator
from pruning.cache import Cache
from pruning.compensation.apply import pruned_for_now
from pruning.compensation.base import Compensation, NoCompensation
from pruning.compensation.bias import BiasCompensation
from pruning.compensation.least_squares import LeastSquares
from pruning.config import Allocation, Direction, PruningConfig, RatioOf, SensitivityConfig
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.importance.activation import ActivationImportance, ActivationMetric
from pruning.importance.base import ImportanceEstimator, Normalization
from pruning.importance.magnitude import Magnitude
from pruning.importance.random import RandomImportance
from pruning.importance.reconstruction import Reconstruction
from pruning.importance.scoring import score_units
from pruning.importance.taylor import Taylor
from pruning.importance.unit_mask import UnitMask
from pruning.kinds import UnitKind as K
from pruning.masking import masked
from pruning.rounds import Chooser
from pruning.units import PruningPlan, UnitGroup, removed_units
from tests.plans import STRUCTURES, half_of
from tests.pruning.allocate import config
from tests.pruning.compensate import HEADS, TEXT
from tests.pruning.test_importance import state_of
from tests.zoo import MODELS, build

SAMPLES = torch.randint(2, 258, (6, 16), generator=torch.Generator().manual_seed(0))
ESTIMATORS: dict[str, ImportanceEstimator] = {
    "taylor": Taylor(halves=False),
    "zscore": Taylor(halves=False, normalization=Normalization.zscore),
    "unit_mask": UnitMask(halves=False),
    "l2": Magnitude(halves=False),
    "wanda": ActivationImportance(halves=False),
    "flap": ActivationImportance(halves=False, metric=ActivationMetric.fluctuation),
    "reconstruction": Reconstruction(halves=False),
    "random": RandomImportance(),
}


SINGLE_HEADS = {"falcon_multi_query": {K.kv_group}}
"""Families of which no KV head can leave."""


@dataclass
class Chosen:
    """What a chooser chose, round by round."""

    model: PreTrainedModel
    groups: dict[str, UnitGroup]
    plans: list[PruningPlan]
    """Of every round that chose something, the last one the plan."""


def options(**values: object) -> PruningConfig:
    return config(**{"structures": list(HEADS), "sensitivity": SensitivityConfig([0.5], samples=2), **values})


def chooser_for(
    model: PreTrainedModel, choice: PruningConfig, estimator: ImportanceEstimator, repair: Compensation, cache: Cache
) -> tuple[Chooser, dict[str, UnitGroup]]:
    layout = find_layout(model)
    allocator = Allocator(choice, model, layout, cache)
    groups = allocator.touched(find_units(model, layout))
    return Chooser(estimator, repair, allocator, cache, SAMPLES, TEXT), groups


def choose(
    model: PreTrainedModel,
    choice: PruningConfig,
    estimator: ImportanceEstimator,
    cache: Cache,
    repair: Compensation | None = None,
) -> Chosen:
    """Choose, check that the model is as it was, and return the plans of all rounds."""
    chooser, groups = chooser_for(model, choice, estimator, repair or LeastSquares(), cache)
    plans: list[PruningPlan] = []
    plan_of = Allocator.plan

    def noted(self: Allocator, *arguments: object, **named: object) -> PruningPlan:
        plans.append(plan_of(self, *arguments, **named))  # type: ignore[arg-type]
        return plans[-1]

    before = state_of(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Allocator, "plan", noted)
        _, plan, _ = chooser.choose(model, groups, 0.0, choice.ratio)
    assert state_of(model) == before
    assert plans[-1] == plan
    return Chosen(model, groups, plans)


def numbers_gone(chosen: Chosen, plan: PruningPlan) -> dict[str, torch.Tensor]:
    """Which numbers of the model leave, parameter by parameter, whichever unit takes them."""
    ones = copy.deepcopy(chosen.model)
    with torch.no_grad():
        for parameter in ones.parameters():
            parameter.fill_(1)
        with masked(ones, chosen.groups, removed_units(plan, chosen.groups)):
            return {name: parameter == 0 for name, parameter in ones.named_parameters()}


def assert_nothing_comes_back(chosen: Chosen) -> None:
    gone = [numbers_gone(chosen, plan) for plan in chosen.plans]
    for earlier, later in pairwise(gone):
        assert not [name for name in earlier if (earlier[name] & ~later[name]).any()]


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("of", [RatioOf.total, RatioOf.blocks, RatioOf.macs, RatioOf.units])
def test_what_an_earlier_round_chose_stays_chosen(name: str, of: RatioOf, cache: Cache) -> None:
    allocations = [Allocation.uniform] if of is RatioOf.units else Allocation
    for allocation in allocations:
        ratio = 0.3 if of is RatioOf.units else 0.2
        choice = options(ratio=ratio, ratio_of=of, allocation=allocation, rounds=3)
        chosen = choose(build("llama_gqa_tied"), choice, ESTIMATORS[name], cache)
        assert len(chosen.plans) == 3
        assert_nothing_comes_back(chosen)
        assert [plan.ratio_asked for plan in chosen.plans] == pytest.approx([ratio / 3, 2 * ratio / 3, ratio])
        assert [plan.ratio_reached for plan in chosen.plans] == sorted(plan.ratio_reached for plan in chosen.plans)


KINDS = ["heads", "width", "depth_and_width", "mixture", "layer"]


@pytest.mark.parametrize("structure", KINDS)
@pytest.mark.parametrize("family", ["llama_biased", "olmo2", "gpt2", "bloom", "gemma2", "mixtral", "qwen3_moe"])
def test_every_kind_of_unit_is_chosen_in_rounds(family: str, structure: str, cache: Cache) -> None:
    """Norms over units and routers see only what is left, while the parameters that are scored keep their shapes."""
    model = build(family)
    kinds = {group.kind for group in find_units(model, find_layout(model)).values()}
    if not {K.expert} & set(STRUCTURES[structure]) <= kinds:
        pytest.skip("this family has no experts")
    wanted = [kind for kind in STRUCTURES[structure] if kind in kinds]
    for allocation, estimator in ((Allocation["global"], Magnitude()), (Allocation.sensitivity, Taylor(halves=False))):
        ratio = 0.3 if structure == "layer" else 0.15
        choice = options(ratio=ratio, structures=wanted, allocation=allocation, rounds=3, protect_last=0)
        chosen = choose(model, choice, estimator, cache)
        assert_nothing_comes_back(chosen)
        assert len(chosen.plans) > 1


@pytest.mark.parametrize("allocation", list(Allocation))
def test_one_round_is_scoring_and_planning(llama: PreTrainedModel, allocation: Allocation, cache: Cache) -> None:
    choice = options(ratio=0.2, allocation=allocation)
    estimator = Taylor()
    chooser, groups = chooser_for(llama, choice, estimator, LeastSquares(), cache)
    scores, plan, corrections = chooser.choose(llama, groups, 0.0, 0.2)
    direct = Allocator(choice, llama, find_layout(llama), cache)
    expected = score_units(estimator, llama, groups, SAMPLES, cache)
    assert plan == direct.plan(llama, groups, expected.values, 0.2, SAMPLES)
    assert all(torch.equal(values, expected.values[name]) for name, values in scores.values.items())
    again = LeastSquares().corrections(llama, groups, plan, TEXT, cache)
    assert set(again) == set(corrections)
    assert all(torch.equal(again[name].weight, corrections[name].weight) for name in again)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "repair", [NoCompensation(), BiasCompensation(), LeastSquares()], ids=lambda r: type(r).__name__
)
@pytest.mark.parametrize("of", [RatioOf.total, RatioOf.blocks, RatioOf.macs])
def test_the_ratio_is_the_same_whatever_the_rounds(of: RatioOf, repair: Compensation, cache: Cache) -> None:
    """To half a channel; biases that compensation adds in between are not counted."""
    reached = []
    for rounds in (1, 2, 3, 6):
        choice = options(ratio=0.15, ratio_of=of, structures=[K.mlp_channel], protect_first=0, protect_last=0)
        model = build("llama_gqa_tied")
        plan = choose(model, replace(choice, rounds=rounds), Taylor(halves=False), cache, repair).plans[-1]
        assert plan.ratio_asked == 0.15
        reached.append(plan.ratio_reached)
    assert reached == [reached[0]] * 4
    assert reached[0] == pytest.approx(0.15, abs=2e-3)


def test_the_next_round_scores_the_model_pruned_and_compensated_so_far(llama: PreTrainedModel, cache: Cache) -> None:
    choice = options(ratio=0.2, allocation=Allocation["global"], rounds=2)
    chooser, groups = chooser_for(llama, choice, Taylor(halves=False), LeastSquares(), cache)
    scores, plan, _ = chooser.choose(llama, groups, 0.0, 0.2)
    first, second = SAMPLES.tensor_split(2)
    allocator = Allocator(choice, llama, find_layout(llama), cache)
    early = score_units(Taylor(halves=False), llama, groups, first, cache)
    so_far = allocator.plan(llama, groups, early.values, 0.1, first)
    corrections = LeastSquares().corrections(llama, groups, so_far, TEXT, cache)
    with pruned_for_now(llama, groups, so_far, corrections):
        late = Taylor(halves=False).score(llama, groups, second)
    for name, values in scores.values.items():
        assert torch.equal(values, late[name])
        gone = removed_units(so_far, groups).get(name, [])
        assert not values[gone].any()
        assert set(gone) <= set(removed_units(plan, groups).get(name, []))


def test_rounds_without_compensation_differ_from_rounds_with_it(cache: Cache) -> None:
    choice = options(ratio=0.3, allocation=Allocation["global"], rounds=3)
    plans = [
        choose(build("llama_gqa_tied"), choice, Taylor(halves=False), cache, repair).plans
        for repair in (NoCompensation(), LeastSquares())
    ]
    assert plans[0][0] == plans[1][0]
    assert plans[0][-1] != plans[1][-1]


def test_a_second_event_goes_on_from_the_first(llama: PreTrainedModel, cache: Cache) -> None:
    from pruning.compensation.apply import compensate
    from pruning.surgery import cut

    choice = options(ratio=0.2, structures=[K.layer, K.mlp_channel], rounds=2, protect_last=0)
    chooser, groups = chooser_for(llama, choice, Magnitude(), BiasCompensation(), cache)
    reached = []
    for before, ratio in ((0.0, 0.1), (0.1, 0.2)):
        groups = chooser.allocator.touched(find_units(llama, find_layout(llama)))
        _, plan, corrections = chooser.choose(llama, groups, before, ratio)
        compensate(llama, corrections)
        cut(llama, find_layout(llama), groups, plan)
        reached.append(plan.ratio_reached)
    assert reached == pytest.approx([0.1, 0.2], abs=5e-3)


def test_a_round_whose_step_is_smaller_than_a_unit_is_left_to_the_next(llama: PreTrainedModel, cache: Cache) -> None:
    choice = options(ratio=0.06, structures=[K.kv_group], rounds=6)  # two KV heads in all
    chosen = choose(llama, choice, Taylor(halves=False), cache)
    assert 1 <= len(chosen.plans) < 6
    assert_nothing_comes_back(chosen)
    assert chosen.plans[-1].ratio_reached == pytest.approx(0.06, abs=5e-3)


def test_an_event_smaller_than_a_unit_is_refused(llama: PreTrainedModel, cache: Cache) -> None:
    choice = options(ratio=0.06, structures=[K.kv_group], rounds=2)
    chooser, groups = chooser_for(llama, choice, Taylor(halves=False), LeastSquares(), cache)
    before = state_of(llama)
    with pytest.raises(ValueError, match="smaller than one unit; use fewer schedule.events"):
        chooser.choose(llama, groups, 0.0, 0.001)
    assert state_of(llama) == before


def test_each_round_needs_a_sample(llama: PreTrainedModel, cache: Cache) -> None:
    with pytest.raises(ValueError, match=r"pruning\.rounds=7: .*data\.calibration_samples=6"):
        chooser_for(llama, options(ratio=0.1, rounds=7), Taylor(), LeastSquares(), cache)


@pytest.mark.parametrize("direction", [Direction.largest, Direction.random])
def test_other_directions_are_refused(direction: Direction) -> None:
    with pytest.raises(ValueError, match=r"pruning\.rounds=2: needs pruning\.direction=smallest"):
        options(rounds=2, direction=direction)


def test_time_is_measured_of_what_would_be_cut(
    llama: PreTrainedModel, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that counts the numbers of decoder layers: what is held at zero takes no time, because it is cut."""

    def blocks(model: PreTrainedModel) -> int:
        return sum(parameter.numel() for parameter in model.model.layers.parameters() if parameter.ndim == 2)

    monkeypatch.setattr(latency, "relative_prefill", lambda model, candidate, _: blocks(candidate) / blocks(model))
    for rounds in (1, 3):
        choice = options(
            ratio=0.2, ratio_of=RatioOf.latency, structures=[K.mlp_channel], rounds=rounds, protect_first=0
        )
        chosen = choose(copy.deepcopy(llama), choice, Taylor(halves=False), cache)
        assert_nothing_comes_back(chosen)
        assert chosen.plans[-1].ratio_reached == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("family", sorted(MODELS))
@pytest.mark.parametrize("estimator", [Magnitude(), Taylor()], ids=["l2", "taylor"])
def test_units_held_at_zero_score_zero(family: str, estimator: ImportanceEstimator) -> None:
    """Norms over units and routers included: their parameters keep their shapes, so that what is left can be scored."""
    model = build(family)
    groups = find_units(model, find_layout(model))
    removed = removed_units(half_of(groups, (*HEADS, K.hidden, K.expert)), groups)
    assert {groups[name].kind for name in removed} >= {K.kv_group, K.mlp_channel, K.hidden} - SINGLE_HEADS.get(
        family, set()
    )
    with masked(model, groups, removed):
        scores = estimator.score(model, {name: groups[name] for name in removed}, SAMPLES)
    for name, units in removed.items():
        assert not scores[name][units].any()
        assert scores[name].any()
