"""Every figure of flatness, in its three forms. Letters: N sequences, T tokens, P weights w.

- raw: depends on how many weights there are and on their scale.
- per_parameter: traces and the sum of eigenvalues divided by P; epsilon divided by sqrt(P), the root mean square over weights.
- relative: for steps as long as the weights are. Eigenvalues times ||w||^2: the curvature along their directions. Traces
  times ||w||^2 / P: the mean curvature over all directions. Epsilon divided by ||w||. Neither changes when weights are
  rescaled and what reads them makes up for it.

Sharpness, average flatness and TIC are relative as they are.
"""

from __future__ import annotations

import math

import torch

from evaluation.flatness.config import MeasuredFlatness
from evaluation.flatness.curvature import gauss_newton, hessian, top_eigenpairs, trace
from evaluation.flatness.displacement import average_rise, sharpness, shortest_step
from evaluation.flatness.gradient_moment import gradient_moment
from evaluation.flatness.landscape import LossLandscape


def flatness_figures(landscape: LossLandscape, blocks: torch.Tensor, config: MeasuredFlatness) -> dict[str, float]:
    """Return all figures by name.

    Args:
        landscape: the loss on the curvature samples.
        blocks: token ids whose gradients are taken one by one, (N, T).
        config: how exactly.
    """
    figures = {"parameters": float(landscape.size), "weight_norm": landscape.norm, "loss": landscape.loss}
    moment = gradient_moment(landscape, blocks)
    figures |= traces(landscape, "trC", moment.trace) | {"trC_stderr": moment.trace_stderr}
    figures |= traces(landscape, "trC_centred", moment.centred_trace)
    for name, operator in (("trH", hessian(landscape)), ("trGGN", gauss_newton(landscape))):
        found = trace(operator, config.products, config.seed, f"trace: {name}")
        figures |= traces(landscape, name, found.estimate) | {f"{name}_stderr": found.stderr}
    figures |= spectrum(landscape, config, moment.trace)
    for rho, rise in zip(config.rhos, sharpness(landscape, config.rhos), strict=True):
        figures[f"sam_{rho:g}"] = rise
    mean, error = average_rise(landscape, config.sigma, config.draws, config.seed)
    return figures | {"avg": mean, "avg_stderr": error}


def spectrum(landscape: LossLandscape, config: MeasuredFlatness, gradient_trace: float) -> dict[str, float]:
    """Return what is made of the largest eigenvalues of the Hessian and their directions.

    TIC is the paper's proxy of the Takeuchi information criterion, the trace of C over the sum of the largest eigenvalues; NaN
    where that sum is not above 0.
    """
    top = top_eigenpairs(hessian(landscape), min(config.eigenvalues, landscape.size), config.iterations, config.seed)
    total, squared = top.values.sum().item(), landscape.norm**2
    epsilon = shortest_step(landscape, top.vectors, config.rise)
    return {
        "lmax": top.values[0].item(),
        "lmax_relative": top.values[0].item() * squared,
        "topk_sum": total,
        "topk_sum_per_parameter": total / landscape.size,
        "topk_sum_relative": total * squared,
        "topk_converged": top.converged,
        "tic": gradient_trace / total if total > 0 else math.nan,
        "epsilon": epsilon.length,
        "epsilon_per_parameter": epsilon.length / math.sqrt(landscape.size),
        "epsilon_relative": epsilon.length / landscape.norm,
        "epsilon_reached": float(epsilon.reached),
    }


def traces(landscape: LossLandscape, name: str, value: float) -> dict[str, float]:
    """Return a trace in its three forms."""
    mean = value / landscape.size
    return {name: value, f"{name}_per_parameter": mean, f"{name}_relative": mean * landscape.norm**2}
