"""Reconstruction: how much worse the reader's output gets when a unit leaves and the remaining inputs are refitted.

Source: the structured Optimal Brain Surgeon (Hassibi, Stork, NeurIPS 1992; ZipLM: Kurtic, Frantar, Alistarh, NeurIPS 2023).
With W the linear map that reads the units, x its inputs over all calibration tokens, H = E[x x^T] + ridge mean(E[x^2]) I,
and S the inputs of the unit, the least squared error of W' x on the other inputs against W x is, per token,

    tr( W_S [ (H^-1)_SS ]^-1 W_S^T )

which is zero for a unit whose activations the others can imitate, however large it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pruning.importance.base import CalibratedImportance, Needs, check_at_least_one, check_finite

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.importance.activations import InputMoments
    from pruning.units import UnitGroup


@dataclass
class Reconstruction(CalibratedImportance):
    """Squared error that a unit's removal leaves in its reader's output after a refit. Forward passes only.

    Keeps a matrix E[x x^T] in float32 for each linear map that is scored: all of them with several batches, one at a time
    when all samples are one batch.
    """

    needs: ClassVar[Needs] = Needs.activations

    ridge: float = 0.01
    """Added to the diagonal of E[x x^T], as a fraction of its mean; must be positive with fewer tokens than inputs."""

    layers_at_once: int | None = None
    """Decoder layers scored in one run over the samples; null for all. Fewer save memory with several batches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one("layers_at_once", self.layers_at_once)
        if not 0 <= self.ridge < float("inf"):
            raise ValueError(f"importance.ridge={self.ridge}: must be 0 or more, e.g. 0.01")

    def check(self, groups: Mapping[str, UnitGroup]) -> None:
        """Raise when a group has no linear map that reads it."""
        from pruning.importance.readers import check_readers

        check_readers("reconstruction", groups, depth=False)

    def score(
        self, model: PreTrainedModel, groups: Mapping[str, UnitGroup], samples: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Score every unit on `samples` (N, T); see the base class for shapes.

        Raises:
            ValueError: a group has no linear map that reads it, or H cannot be inverted.
        """
        from pruning.importance.activations import stream_input_moments
        from pruning.importance.readers import input_positions, weight_of
        from pruning.importance.saliency import in_rounds

        self.check(groups)
        scores: dict[str, torch.Tensor] = {}

        def consume(reader: str, moments: InputMoments) -> None:
            assert moments.second is not None
            inverse = self._inverse(reader, moments.second.double())
            weight = weight_of(model, reader).double()
            for name, group in groups.items():
                if group.readers == (reader,):
                    scores[name] = refit_errors(weight, inverse, input_positions(group).to(weight.device)).float().cpu()

        readers = dict.fromkeys(reader for group in groups.values() for reader in group.readers)
        for chosen in in_rounds(readers, self.layers_at_once):
            stream_input_moments(model, chosen, samples, consume, batch_size=self.batch_size, second=True)
        ordered = {name: scores[name] for name in groups}
        check_finite(ordered, model, samples)
        return ordered

    def _inverse(self, reader: str, second: torch.Tensor) -> torch.Tensor:
        """Return H^-1 from E[x x^T], (I, I) float64; NaN where the inputs were not finite."""
        import torch

        second.diagonal().add_(self.ridge * second.diagonal().mean())
        if not second.isfinite().all():
            return torch.full_like(second, torch.nan)
        factor, failed = torch.linalg.cholesky_ex(second)
        if failed:
            raise ValueError(
                f"importance.ridge={self.ridge}: too small for the inputs of {reader}, whose second moments cannot be "
                "inverted; raise it (0.01 is usual) or calibrate on more tokens"
            )
        return torch.cholesky_inverse(factor)


def refit_errors(weight: torch.Tensor, inverse: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return tr(W_S [(H^-1)_SS]^-1 W_S^T) of every unit, (U,); NaN where H^-1 is not positive definite there.

    Args:
        weight: W, (outputs, I).
        inverse: H^-1, (I, I).
        indices: the inputs S of every unit, (U, C).
    """
    import torch

    # not torch.linalg.solve: in batches of large blocks it fails with some versions of MKL
    factors, failed = torch.linalg.cholesky_ex(inverse[indices[:, :, None], indices[:, None, :]])
    halves = torch.linalg.solve_triangular(factors, weight.T[indices], upper=False)
    return halves.square().sum(dim=(1, 2)).masked_fill(failed > 0, torch.nan)
