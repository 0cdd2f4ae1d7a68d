"""What it costs to leave the weights: a step along the gradient, random steps, and the shortest step that costs a given rise.

L is the loss in nats per token, w the weights, g the gradient of L at w. Letters: K directions, P weights.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch

from evaluation.flatness.landscape import LossLandscape
from pruning.progress import track

PRECISION = 1.01
"""The shortest step is found to this factor."""


def sharpness(landscape: LossLandscape, rhos: list[float]) -> list[float]:
    """Return L(w + rho ||w|| g / ||g||) - L(w) for each rho.

    The rise that sharpness-aware minimization puts down (Foret, Kleiner, Mobahi, Neyshabur, ICLR 2021, equation 2).
    """
    gradient = landscape.gradient()
    direction = gradient / gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
    return [landscape.rise(rho * landscape.norm * direction) for rho in rhos]


def average_rise(landscape: LossLandscape, sigma: float, draws: int, seed: int) -> tuple[float, float]:
    """Return the mean over draws of L(w + sigma |w| z) - L(w), z standard normal for each weight, and its standard error."""
    generator = torch.Generator().manual_seed(seed)
    scale = sigma * landscape.weights.abs()
    rises = []
    for _ in track(range(draws), "random steps"):
        noise = torch.randn(landscape.size, generator=generator).to(scale.device)
        rises.append(landscape.rise(scale * noise))
    return statistics.fmean(rises), statistics.stdev(rises) / math.sqrt(draws)


@dataclass(frozen=True)
class ShortestStep:
    """The shortest step along one of some directions that raises the loss by a given amount."""

    length: float
    reached: bool
    """False where no step up to that length does."""


def shortest_step(landscape: LossLandscape, directions: torch.Tensor, rise: float) -> ShortestStep:
    """Find the smallest |eps| <= ||w|| for which L(w + eps v) - L(w) >= rise for one of the directions v.

    The paper walks a grid of eps; this halves from ||w|| down and then bisects, direction by direction, which finds the same
    where the loss, once it has risen by that much, stays above it.

    Args:
        landscape: the loss.
        directions: unit vectors, (K, P); each is followed both ways.
        rise: nats per token, above 0.
    """
    best, reached = landscape.norm, False
    for direction, sign in track([(direction, sign) for direction in directions for sign in (1, -1)], "shortest step"):
        found = _shortest_along(landscape, sign * direction, rise, best)
        if found is not None:
            best, reached = found, True
    return ShortestStep(best, reached)


def _shortest_along(landscape: LossLandscape, ray: torch.Tensor, rise: float, limit: float) -> float | None:
    """Return the shortest step along a ray (P,) that costs `rise`; None where a step as long as `limit` does not."""

    def costs(length: float) -> bool:
        return landscape.rise(length * ray) >= rise

    if not costs(limit):
        return None
    high, low = limit, limit / 2
    while costs(low):
        high, low = low, low / 2
    while high / low > PRECISION:
        middle = math.sqrt(high * low)
        low, high = (low, middle) if costs(middle) else (middle, high)
    return high
