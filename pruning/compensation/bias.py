"""Bias compensation: what the inputs that leave contributed on average moves into the bias.

    b' = b + W_P E[x_P]

Source: FLAP (An et al., AAAI 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning.compensation.base import CalibratedCompensation, Correction
from pruning.kinds import UnitKind

if TYPE_CHECKING:
    import torch

    from pruning.compensation.moments import InputMoments
    from pruning.units import UnitGroup


@dataclass
class BiasCompensation(CalibratedCompensation):
    """The mean contribution of what leaves stays as a bias.

    Linear maps without a bias get one: such a checkpoint loads through the modeling file saved beside it.
    """

    def check(self, groups: Mapping[str, UnitGroup]) -> None:
        """Raise when hidden width may be cut, which new biases would have to lose too."""
        if any(group.kind is UnitKind.hidden for group in groups.values()):
            raise ValueError(
                "compensation=bias: cannot be used when pruning.structures has hidden; use compensation=least_squares or none"
            )

    def correct(self, reader: str, weight: torch.Tensor, kept: torch.Tensor, moments: InputMoments) -> Correction:
        """Return what is added to the bias; see the module for the formula."""
        leaves = ~kept
        return Correction(added_bias=weight[:, leaves].double() @ moments.mean.to(weight.device)[leaves])
