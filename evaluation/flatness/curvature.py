"""Hessian and Gauss-Newton matrix of the loss as products with vectors; traces and eigenvalues from such products.

The generalized Gauss-Newton matrix is G = J^T H J, with J the derivative of the logits by the weights and H the Hessian of the
loss by the logits (Martens 2020, "New Insights and Perspectives on the Natural Gradient Method", section 8). It has no
negative eigenvalue. Letters: P weights, K eigenvalues.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from evaluation.flatness.landscape import LossLandscape
from pruning.importance.gradients import only_trainable
from pruning.progress import Step, loop

if TYPE_CHECKING:
    from hessian_eigenthings import CurvatureOperator, TraceResult


@dataclass(frozen=True)
class Eigenpairs:
    """The largest eigenvalues of the Hessian, the largest first."""

    values: torch.Tensor
    """(K,)."""

    vectors: torch.Tensor
    """(K, P), each of norm 1."""

    converged: float
    """Fraction of them that Lanczos' method has settled."""


def hessian(landscape: LossLandscape) -> CurvatureOperator:
    """Return the Hessian of the loss, (P, P)."""
    from hessian_eigenthings import HessianOperator, hf_lm_loss

    return HessianOperator(landscape.model, landscape.batches, hf_lm_loss(), param_filter=landscape.includes)


def gauss_newton(landscape: LossLandscape) -> CurvatureOperator:
    """Return the generalized Gauss-Newton matrix of the loss, (P, P)."""
    from hessian_eigenthings import GGNOperator, LambdaOperator, hf_lm_forward, hf_lm_loss_of_output

    operator = GGNOperator(
        landscape.model,
        landscape.batches,
        hf_lm_forward(),
        hf_lm_loss_of_output(),
        param_filter=landscape.includes,
    )

    def product(vector: torch.Tensor) -> torch.Tensor:
        with only_trainable(landscape.model, ()):  # else a graph of the product itself would be kept
            return operator.matvec(vector)

    return LambdaOperator(product, operator.size, operator.device, operator.dtype)


def trace(operator: CurvatureOperator, products: int, seed: int, description: str) -> TraceResult:
    """Estimate the trace by Hutch++ (Meyer, Musco, Musco, Woodruff 2021), with its standard error.

    A third of the products finds a subspace on which the trace is taken exactly; another third estimates what is left of it by
    Hutchinson's method.
    """
    import hessian_eigenthings

    products = min(products, 3 * operator.size)
    with loop(description, products) as step:
        return hessian_eigenthings.trace(_counted(operator, step), num_matvecs=products, method="hutch++", seed=seed)


def top_eigenpairs(operator: CurvatureOperator, count: int, iterations: int, seed: int) -> Eigenpairs:
    """Return the `count` largest eigenvalues in the algebraic sense, by Lanczos' method with full reorthogonalization."""
    from hessian_eigenthings import lanczos

    iterations = min(iterations, operator.size)
    with loop("eigenvalues", iterations) as step:
        found = lanczos(
            _counted(operator, step),
            k=min(count, iterations),
            max_iter=iterations,
            tol=1e-2,
            which="LA",
            reorthogonalize=True,
            seed=seed,
        )
    return Eigenpairs(found.eigenvalues, found.eigenvectors, found.converged.float().mean().item())


def _counted(operator: CurvatureOperator, step: Step) -> CurvatureOperator:
    """Return the operator, which tells `step` of every product."""
    from hessian_eigenthings import LambdaOperator

    def product(vector: torch.Tensor) -> torch.Tensor:
        found = operator.matvec(vector)
        step()
        return found

    return LambdaOperator(product, operator.size, operator.device, operator.dtype)
