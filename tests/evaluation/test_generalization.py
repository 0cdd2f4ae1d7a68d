from __future__ import annotations

import math
import random
import statistics

import pytest

from evaluation.generalization import gap_summary, gaps, generalization_summary, out_of_domain_source
from evaluation.perplexity import TextScore
from evaluation.stability import StabilityConfig
from tests.evaluation.probes import CONFIG, noisy_probe, probe, text


def test_gain_is_above_0_when_the_pruned_model_ends_better_than_the_control() -> None:
    better, worse = probe(0.6, 2.0, 0.7), probe(0.5, 2.3, 0.6)
    found = generalization_summary(better, worse, worse, None, CONFIG)
    assert found["generalization/gain/tok_acc"] == pytest.approx(0.1)
    assert found["generalization/gain/loss"] == pytest.approx(0.3)
    assert found["generalization/gain/zeroshot"] == pytest.approx(0.1)
    other = generalization_summary(worse, worse, better, None, CONFIG)
    for measure in ("tok_acc", "loss", "zeroshot"):
        assert other[f"generalization/gain/{measure}"] == pytest.approx(-found[f"generalization/gain/{measure}"])


def test_the_final_level_is_that_of_the_recovered_model() -> None:
    found = generalization_summary(probe(0.6, 2.0, 0.7), probe(0.8, 1.5), probe(0.5, 2.3, 0.6), None, CONFIG)
    finals = {name: value for name, value in found.items() if "/final/" in name}
    assert finals == pytest.approx({f"generalization/final/{k}": v for k, v in
                                    (("tok_acc", 0.6), ("loss", 2.0), ("zeroshot", 0.7))})  # fmt: skip


def test_what_is_retained_is_relative_to_the_dense_model_before_any_training() -> None:
    found = generalization_summary(probe(0.6, 2.0, 0.4), probe(0.8, 1.5, 0.5), probe(0.1, 9.0), None, CONFIG)
    assert found["generalization/retained/tok_acc"] == pytest.approx(0.75)
    assert found["generalization/retained/zeroshot"] == pytest.approx(0.8)
    assert found["generalization/retained/loss"] == pytest.approx(math.exp(1.5) / math.exp(2.0))


def test_the_gain_over_random_pruning_is_there_only_with_that_control() -> None:
    final, dense, control, drawn = probe(0.6, 2.0), probe(0.8, 1.5), probe(0.7, 1.4), probe(0.3, 3.0)
    found = generalization_summary(final, dense, control, drawn, CONFIG)
    assert found["generalization/gain_match/tok_acc"] == pytest.approx(0.3)
    assert found["generalization/gain_match/loss"] == pytest.approx(1.0)
    without = generalization_summary(final, dense, control, None, CONFIG)
    assert not [name for name in without if "gain_match" in name]
    assert without.items() <= found.items()


def test_a_control_without_zeroshot_gives_no_zeroshot_gain() -> None:
    found = generalization_summary(probe(0.6, 2.0, 0.7), probe(0.6, 2.0, 0.7), probe(0.5, 2.3), None, CONFIG)
    assert "generalization/gain/zeroshot" not in found
    assert "generalization/gain/loss" in found


def test_the_interval_of_the_gain_agrees_with_a_paired_bootstrap_by_hand() -> None:
    final, control = noisy_probe(0.4, 2.6, 1), noisy_probe(0.45, 2.3, 2)
    found = generalization_summary(final, control, control, None, StabilityConfig(resamples=4000, confidence=0.9))
    draw = random.Random(0)
    gains = []
    for _ in range(4000):
        blocks = draw.choices(range(40), k=40)
        gains.append(sum(control.text.loss_sums[i] - final.text.loss_sums[i] for i in blocks) / 4000)
    gains.sort()
    width = gains[3799] - gains[200]
    assert found["generalization/gain/loss_low"] == pytest.approx(gains[200], abs=0.1 * width)
    assert found["generalization/gain/loss_high"] == pytest.approx(gains[3799], abs=0.1 * width)


def uneven(*correct: int) -> TextScore:
    return TextScore([30.0 - 2 * value for value in correct], list(correct), 10)


def test_gaps_are_above_0_when_training_text_is_predicted_better() -> None:
    train, heldout, other = uneven(7, 8, 6), uneven(5, 6, 2), uneven(3, 1, 4)
    found = gap_summary({"train": train, "heldout": heldout, "out_of_domain": other})
    for text_score, label in ((heldout, "gap"), (other, "gap_out_of_domain")):
        assert found[f"generalization/{label}/loss"] == pytest.approx(text_score.loss - train.loss)
        difference = train.token_accuracy - text_score.token_accuracy
        assert found[f"generalization/{label}/tok_acc"] == pytest.approx(difference)
        errors = [statistics.stdev(score.correct) / 10 / 3**0.5 for score in (train, text_score)]
        assert found[f"generalization/{label}/tok_acc_stderr"] == pytest.approx(math.hypot(*errors))
        error = math.hypot(train.loss_stderr, text_score.loss_stderr)
        assert found[f"generalization/{label}/loss_stderr"] == pytest.approx(error)
    assert found["generalization/train/tok_acc"] == pytest.approx(0.7)
    assert found["generalization/out_of_domain/loss"] == pytest.approx(other.loss)


def test_without_training_text_there_is_no_gap() -> None:
    assert gap_summary({}) == {}
    found = gap_summary({"heldout": text([5, 5], 2.0)})
    assert not [name for name in found if "gap" in name]


def test_gaps_are_known_at_every_moment_that_has_both_texts() -> None:
    assert gaps({"step": 3, "train/loss": 2.0, "train/tok_acc": 0.5, "probe/loss": 9.0}) == {}
    found = gaps({"step": 3, "train/loss": 2.0, "train/tok_acc": 0.5, "heldout/loss": 2.25, "heldout/tok_acc": 0.25})
    assert found == {"gap/loss": 0.25, "gap/tok_acc": 0.25}


def test_the_text_out_of_domain_is_the_first_tested_one_of_another_corpus() -> None:
    texts = {"books": "passages", "encyclopedia": "wikipedia", "mine": "mine.txt"}
    near = {"text/books/in_domain": 1.0, "text/encyclopedia/in_domain": 0.0, "text/mine/in_domain": 0.0}
    assert out_of_domain_source(None, texts, near) == "wikipedia"
    assert out_of_domain_source("other.txt", texts, near) == "other.txt"
    assert out_of_domain_source(None, texts, dict.fromkeys(near, 1.0)) is None
    assert out_of_domain_source(None, {}, {}) is None
