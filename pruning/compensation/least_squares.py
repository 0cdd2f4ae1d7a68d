"""Least-squares compensation: the weights that stay reproduce, as well as they can, the output the whole map had.

    W'_K = W_K + W_P H_PK (H_KK + r diag(H_KK))^-1,   H = E[x x^T]

This W' minimises E|W x - W' x_K|^2 + sum_j r H_jj |W'_j - W_j|^2: the refit of OSSCAR (Meng et al., ICML 2024) and ZipLM
(Kurtic et al., NeurIPS 2023), drawn to the weights that were there. So nothing removed changes nothing, the error on the
calibration inputs never grows, and r has no unit: a rescaling of any input changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning.compensation.base import CalibratedCompensation, Correction

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.compensation.moments import InputMoments
    from pruning.units import PruningPlan, UnitGroup

TELLABLE = 1e-6
"""An input of whose mean square a smaller part cannot be told from the inputs before it is a sum of them: moments have the
precision of float32."""


@dataclass
class LeastSquares(CalibratedCompensation):
    """The map that reads the units is refitted on those that stay; solved in float64."""

    ridge: float = 0.01
    """How strongly each weight is drawn to what it was, relative to the mean square of its input."""

    gains: bool = False
    """Whether the outputs of all sublayers, and the logits, get a factor each that is fitted to the text (gains.py)."""

    gain_samples: int = 32
    """The first so many of the blocks are used for that."""

    gain_ridge: float = 0.3
    """How strongly each gain is drawn to 1, relative to its own curvature."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ridge", "gain_ridge"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"compensation.{name}={value}: must be at least 0")
        if self.gains and not 1 <= self.gain_samples <= self.samples:
            raise ValueError(
                f"compensation.gain_samples={self.gain_samples}: must be in [1, compensation.samples={self.samples}]"
            )

    def finish(
        self,
        model: PreTrainedModel,
        groups: Mapping[str, UnitGroup],
        plan: PruningPlan,
        outputs: Sequence[str],
        samples: torch.Tensor,
        so_far: Mapping[str, Correction],
    ) -> dict[str, Correction]:
        """Return the corrections with the gains of `outputs` and of the logits in them; see the base class."""
        if not self.gains:
            return dict(so_far)
        from pruning.compensation.apply import pruned_for_now
        from pruning.compensation.gains import final_norm, fit_gains, gained

        used = samples[: self.gain_samples]
        norm = final_norm(model, used[:1])
        named = [*outputs, *([] if norm is None else [norm])]
        with pruned_for_now(model, groups, plan, so_far):
            changes = fit_gains(model, named, used, self.gain_ridge, self.batch_size)
        corrected = {
            name: gained(model.get_submodule(name), so_far.get(name), change) for name, change in changes.items()
        }
        return {**so_far, **corrected}

    def correct(self, reader: str, weight: torch.Tensor, kept: torch.Tensor, moments: InputMoments) -> Correction:
        """Return the refitted weight; see the module for the formula.

        Raises:
            ValueError: the second moments of the inputs that stay cannot be inverted.
        """
        stays, leaves = kept.nonzero().flatten(), (~kept).nonzero().flatten()
        taken_over = self._taken_over(reader, moments.second.to(weight.device), stays, leaves)
        refitted = weight.clone()
        refitted[:, stays] = (weight[:, stays] + weight[:, leaves].double() @ taken_over.T).to(weight.dtype)
        return Correction(refitted)

    def _taken_over(self, reader: str, second: torch.Tensor, stays: torch.Tensor, leaves: torch.Tensor) -> torch.Tensor:
        """Return how much of each input that leaves every one that stays takes over, (H_KK + r diag(H_KK))^-1 H_KP, (K, P)."""
        import torch

        factor = self._factor(reader, second[stays[:, None], stays].double())
        # Two triangular solves, because cholesky_solve copies the factor.
        half_solved = torch.linalg.solve_triangular(factor, second[stays[:, None], leaves].double(), upper=False)
        return torch.linalg.solve_triangular(factor.mT, half_solved, upper=True)

    def _factor(self, reader: str, system: torch.Tensor) -> torch.Tensor:
        """Return the Cholesky factor (K, K) of H_KK + r diag(H_KK), which is made in place of H_KK, float64."""
        import torch

        diagonal = system.diagonal()
        # An input that is always zero has nothing to do with the others: its weight stays.
        diagonal.copy_(torch.where(diagonal > 0, diagonal * (1 + self.ridge), 1.0))
        factor, failed = torch.linalg.cholesky_ex(system)
        if failed or (factor.diagonal().square() < TELLABLE * diagonal).any():
            raise ValueError(
                f"compensation.ridge={self.ridge}: too small for {reader}, whose inputs' second moments cannot be inverted; "
                "raise it (0.01 is usual), or calibrate on more compensation.samples"
            )
        return factor
