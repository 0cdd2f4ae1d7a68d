"""The measures of algorithmic stability, as functions of losses and weights.

With S the examples, S^B the same with the block B of them swapped for fresh ones, A(S) the recovered model, l(A; z) its
loss on example z in nats per token, D the distribution all examples come from:

    on average   E[ l(A(S^B); z_i) - l(A(S); z_i) ], i in B  =  E[ l(A(S); D) - l(A(S); S) ]
    uniform      sup over S, B and z of | E_A[ l(A(S); z) - l(A(S^B); z) ] |

The first is average replace-one stability (Shalev-Shwartz, Shamir, Srebro, Sridharan, "Learnability, Stability and Uniform
Convergence", JMLR 2010), and equals the expected generalization gap. It holds for blocks as for single examples, because
A(S^B) has seen none of B. The second is uniform stability (Bousquet, Elisseeff, "Stability and Generalization", JMLR 2002),
which no finite number of trainings can bound from above. Letters: P examples in the pool, n of them in S, M twins, k
examples swapped by each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

QUANTILE = 0.99
"""Of the changes in loss, reported beside the largest, which rests on a single example."""


def replaced_changes(
    base: np.ndarray, other: np.ndarray, removed: np.ndarray, fresh: np.ndarray
) -> tuple[float, float]:
    """Return the two estimates of on-average stability that one twin gives, nats per token; above 0 = it memorises.

        direct     mean over the removed z of l(A(S^B); z) - l(A(S); z)
        symmetric  mean over the fresh z' of  l(A(S); z') - l(A(S^B); z')

    Each compares a model that has not been trained on an example with one that has.

    Args:
        base: loss of A(S) on every example of the pool, (P,).
        other: loss of A(S^B), (P,).
        removed: places in the pool of the examples in B, (k,).
        fresh: places of those that took their slots, (k,).
    """
    return float(np.mean(other[removed] - base[removed])), float(np.mean(base[fresh] - other[fresh]))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over twins, and its standard error. A twin is a cluster: its k examples share one training."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


def largest_changes(base: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """Return the largest |l(A(S); z) - l(A(S^B); z)| over twins and examples, and the 99 % quantile, nats per token.

    The largest is a lower bound on uniform stability as it stands for this seed of A. Only with k = 1 is it the textbook's.

    Args:
        base: loss of A(S) on every example of the pool, (P,).
        others: loss of the twins, (M, P).
    """
    changes = np.abs(others - base)
    return float(changes.max()), float(np.quantile(changes, QUANTILE))


def generalization_gap(
    before: np.ndarray, after: np.ndarray, trained: np.ndarray, fresh: np.ndarray
) -> tuple[float, float]:
    """Return the gap of one training, and its standard error over examples, nats per token; above 0 = over-fitted.

        mean over the fresh of h - mean over the trained of h,    h = l(A(S); z) - l(before; z)

    The model before the recovery knows neither, so subtracting its loss does not change the expectation; it takes out that
    some examples are harder than others (a control variate).

    Args:
        before: loss of the model before the recovery on every example of the pool, (P,).
        after: loss of the recovered model, (P,).
        trained: places in the pool of the examples that it was trained on, (n,).
        fresh: places of those that it was not trained on, any shape.
    """
    change = after - before
    seen, unseen = change[trained.ravel()], change[fresh.ravel()]
    error = math.hypot(*(part.std(ddof=1) / math.sqrt(len(part)) for part in (seen, unseen)))
    return float(unseen.mean() - seen.mean()), error


def relative_distance(
    before: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]
) -> float:
    """Return || dW' - dW ||_F / || dW ||_F over all weights together, with dW = base - before and dW' = other - before.

    Taken on merged weights: for LoRA dW = (alpha / r) B A, of which the factors can change (B -> B R, A -> R^-1 A) while the
    model stays the same. Argument stability (Liu, Lugosi, Neu, Tao, ICML 2017) relative to the length of the update. NaN when
    the recovery changed nothing.

    Args:
        before: weights before the recovery, by name.
        base: weights after that of the base.
        other: weights after that of the twin.
    """
    apart = moved = 0.0
    for name, start in before.items():
        first = base[name].double()
        apart += float((other[name].double() - first).square().sum())
        moved += float((first - start.double()).square().sum())
    return math.sqrt(apart / moved) if moved else math.nan
