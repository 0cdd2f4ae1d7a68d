"""Algorithmic stability as functions of numbers: the order of reading, what twins swap, and every measure by hand."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch

from evaluation.algorithmic_stability import measures
from evaluation.algorithmic_stability.config import NoTwins, Sampling, Twins
from evaluation.algorithmic_stability.coupling import couple, first_reads, index_stream


def test_without_replacement_every_epoch_reads_every_slot_once_in_a_new_order() -> None:
    stream = index_stream(7, 21, Sampling.without_replacement, seed=3)
    epochs = stream.reshape(3, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3


def test_with_replacement_the_number_of_reads_is_poisson() -> None:
    stream = index_stream(4000, 8000, Sampling.with_replacement, seed=0)
    reads = [0] * 4000
    for slot in stream.tolist():
        reads[slot] += 1
    for times in range(5):
        expected = math.exp(-2) * 2**times / math.factorial(times)
        assert reads.count(times) / 4000 == pytest.approx(expected, abs=4 * math.sqrt(expected / 4000))


@pytest.mark.parametrize("sampling", list(Sampling))
def test_the_order_is_the_seeds(sampling: Sampling) -> None:
    first, again, other = (index_stream(50, 100, sampling, seed).tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_first_reads_are_those_of_a_walk_through_the_stream() -> None:
    stream = index_stream(30, 60, Sampling.with_replacement, seed=5)
    found = first_reads(stream, 30)
    for slot in range(30):
        when = next((place / 60 for place, read in enumerate(stream) if read == slot), math.nan)
        assert found[slot] == pytest.approx(when, nan_ok=True)
    assert np.isnan(found).any()


def test_a_twin_differs_from_the_base_in_its_own_slots_only() -> None:
    coupling = couple(20, 4, 3, seed=0)
    assert sorted([*coupling.examples, *coupling.fresh.ravel()]) == list(range(32))
    assert len(set(coupling.slots.ravel())) == 12
    for twin in range(4):
        own = coupling.examples_of(twin)
        assert np.flatnonzero(own != coupling.examples).tolist() == sorted(coupling.slots[twin])
        assert own[coupling.slots[twin]].tolist() == coupling.fresh[twin].tolist()
        assert coupling.examples[coupling.slots[twin]].tolist() == coupling.removed[twin].tolist()


def test_every_example_of_the_pool_and_every_slot_is_swapped_equally_often() -> None:
    draws, slots, removed, fresh = 4000, np.zeros(6), np.zeros(8), np.zeros(8)
    for seed in range(draws):
        coupling = couple(6, 2, 1, seed)
        slots[coupling.slots.ravel()] += 1
        removed[coupling.removed.ravel()] += 1
        fresh[coupling.fresh.ravel()] += 1
    for counts in (slots, removed, fresh):
        share = 2 / len(counts)
        assert counts / draws == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / draws))


POPULATION = [0.3, -1.2, 2.0, 0.7, 5.1]


def mean_learner_losses(examples: list[float]) -> np.ndarray:
    """Squared error on everyone of a learner that predicts the mean of its examples."""
    prediction = sum(examples) / len(examples)
    return np.array([(prediction - value) ** 2 for value in POPULATION])


def test_both_estimates_are_on_average_exactly_the_generalization_gap() -> None:
    """Over all ways to deal out five people: three are trained on, two of these are swapped for the other two."""
    direct, symmetric, adjusted, gaps = [], [], [], []
    before = np.array([value**3 for value in POPULATION])  # a loss that has nothing to do with who is dealt where
    for dealt in permutations(range(5)):
        trained, fresh = list(dealt[:3]), list(dealt[3:])
        base = mean_learner_losses([POPULATION[i] for i in trained])
        twin = mean_learner_losses([POPULATION[i] for i in [trained[0], *fresh]])
        one, two = measures.replaced_changes(base, twin, np.array(trained[1:]), np.array(fresh))
        direct.append(one)
        symmetric.append(two)
        gaps.append(sum(base[i] for i in fresh) / 2 - sum(base[i] for i in trained) / 3)
        adjusted.append(measures.generalization_gap(before, base, np.array(trained), np.array(fresh))[0])
    expected = sum(gaps) / len(gaps)
    assert expected > 0.5
    assert np.mean(direct) == pytest.approx(expected)
    assert np.mean(symmetric) == pytest.approx(expected)
    assert np.mean(adjusted) == pytest.approx(expected)


def test_the_error_of_a_mean_over_twins_is_the_textbooks() -> None:
    values = [0.5, 0.1, 0.4, 0.8]
    mean, error = measures.mean_and_error(values)
    assert mean == pytest.approx(0.45)
    variance = sum((value - 0.45) ** 2 for value in values) / 3
    assert error == pytest.approx(math.sqrt(variance / 4))


def test_the_largest_change_and_the_quantile_are_over_twins_and_examples() -> None:
    draw = np.random.default_rng(0)
    base, others = draw.normal(size=101), draw.normal(size=(4, 101))
    slow = sorted(abs(others[twin][z] - base[z]) for twin in range(4) for z in range(101))
    place = 0.99 * (len(slow) - 1)
    low = int(place)
    largest, quantile = measures.largest_changes(base, others)
    assert largest == pytest.approx(slow[-1])
    assert quantile == pytest.approx(slow[low] + (place - low) * (slow[low + 1] - slow[low]))


def test_the_gap_and_its_error_by_hand() -> None:
    before, after = np.array([1.0, 3.0, 2.0, 5.0, 4.0]), np.array([0.5, 1.5, 1.0, 5.5, 4.25])
    gap, error = measures.generalization_gap(before, after, np.array([0, 1, 2]), np.array([[3], [4]]))
    assert gap == pytest.approx((0.5 + 0.25) / 2 - (-0.5 - 1.5 - 1.0) / 3)
    seen, unseen = (0.5**2 + 0.5**2) / 2 / 3, (0.125**2 + 0.125**2) / 2  # variances of the two means
    assert error == pytest.approx(math.sqrt(seen + unseen))


def lora_weights(factors: list[tuple[torch.Tensor, torch.Tensor]], start: dict[str, torch.Tensor]) -> dict:
    return {name: start[name] + 2.0 * b @ a for name, (a, b) in zip(start, factors, strict=True)}


def test_the_distance_is_that_of_the_merged_updates_whatever_the_factors() -> None:
    draw = torch.Generator().manual_seed(0)
    start = {name: torch.randn(6, 5, generator=draw) for name in ("q", "k")}
    base, twin = ([(torch.randn(2, 5, generator=draw), torch.randn(6, 2, generator=draw)) for _ in "qk"] for _ in "bt")
    updates = [torch.cat([2.0 * (b @ a).flatten() for a, b in factors]) for factors in (base, twin)]
    expected = ((updates[1] - updates[0]).norm() / updates[0].norm()).item()
    weights = [lora_weights(factors, start) for factors in (base, twin)]
    assert measures.relative_distance(start, *weights) == pytest.approx(expected, rel=1e-5)
    turn = torch.tensor([[3.0, 1.0], [0.5, 2.0]])
    same_model = [(torch.linalg.inv(turn) @ a, b @ turn) for a, b in base]
    assert max((one[0] - two[0]).abs().max() for one, two in zip(same_model, base, strict=True)) > 0.1
    assert measures.relative_distance(start, weights[0], lora_weights(same_model, start)) < 1e-5


def test_without_an_update_there_is_no_relative_distance() -> None:
    start = {"q": torch.ones(2, 2)}
    assert math.isnan(measures.relative_distance(start, start, {"q": torch.zeros(2, 2)}))


def test_blocks_needed_are_the_examples_and_the_fresh_ones() -> None:
    assert Twins(twins=3, swapped=2, epochs=4).blocks_needed((48, 16)) == (12 + 6, 16)
    assert NoTwins().blocks_needed((48, 16)) == (0, 0)


@pytest.mark.parametrize(
    ("options", "reads", "message"),
    [
        ({}, 0, r"algorithmic_stability=twins: .* recovery=none"),
        ({"epochs": 5}, 48, r"algorithmic_stability\.epochs=5: must divide the 48 blocks"),
        ({"swapped": 10}, 48, r"algorithmic_stability\.swapped=10: .* must be at most 9"),
    ],
)
def test_what_does_not_go_with_the_recovery_is_refused(options: dict, reads: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Twins(**options).blocks_needed((reads, 16))


@pytest.mark.parametrize(("key", "value"), [("twins", 1), ("swapped", 0), ("epochs", 0)])
def test_values_out_of_range_are_refused(key: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"algorithmic_stability\.{key}={value}: must be at least"):
        Twins(**{key: value})
