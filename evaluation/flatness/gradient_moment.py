"""The second moment of the gradient over sequences: how much the gradient depends on the sample.

Bartoldson, Morcos, Barbu, Erlebacher (NeurIPS 2020) measure the trace of the non-centred matrix C, with g_i the gradient of
the loss on sample i alone; here a sample is a sequence, and its loss the mean over its tokens:

    tr C          = (1/N) sum_i ||g_i||^2
    centred tr C  = tr C - ||(1/N) sum_i g_i||^2
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch

from evaluation.flatness.landscape import LossLandscape, batch_of
from pruning.progress import track


@dataclass(frozen=True)
class GradientMoment:
    """Squared norms of the gradients of single sequences, and of their mean."""

    squared_norms: list[float]
    """(N,)."""

    squared_norm_of_mean: float

    @property
    def trace(self) -> float:
        """Of the second moment about zero, the paper's tr C."""
        return statistics.fmean(self.squared_norms)

    @property
    def trace_stderr(self) -> float:
        """Standard error of `trace` over the sequences."""
        return statistics.stdev(self.squared_norms) / math.sqrt(len(self.squared_norms))

    @property
    def centred_trace(self) -> float:
        """Of the covariance of the gradients of these sequences (divided by N)."""
        return self.trace - self.squared_norm_of_mean


def gradient_moment(landscape: LossLandscape, blocks: torch.Tensor) -> GradientMoment:
    """Take the gradient of every sequence of `blocks` (N, T) on its own, by the weights of the landscape."""
    squared_norms = []
    total = torch.zeros_like(landscape.weights)
    for row in track(blocks.split(1), "gradients"):
        gradient = landscape.gradient(batch_of(row.to(landscape.device)))
        squared_norms.append(gradient.square().sum().item())
        total += gradient
    return GradientMoment(squared_norms, (total / len(blocks)).square().sum().item())
