"""The contract of a compensation, and what is put into the model.

Letters: O outputs and I inputs of a linear map, P its inputs that leave, K those that stay, N samples, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruning.cache import Cache
    from pruning.compensation.moments import InputMoments
    from pruning.units import PruningPlan, UnitGroup


@dataclass(frozen=True)
class Correction:
    """What changes in a linear map that loses inputs. None leaves a part as it is."""

    weight: torch.Tensor | None = None
    """The new weight, (O, I), in the map's own type. What it holds for inputs that leave does not matter."""

    added_bias: torch.Tensor | None = None
    """Added to the bias, (O,); a map without a bias gets one."""


@dataclass
class Compensation:
    """Base of the `compensation` options. A subclass's fields are its hyper-parameters."""

    def check(self, groups: Mapping[str, UnitGroup]) -> None:
        """Raise a ValueError when this compensation does not go with the groups that may be cut. Called before any work."""

    def blocks_needed(self) -> tuple[int, int]:
        """Return the number and length (N, T) of the calibration blocks; (0, 0) for none."""
        return 0, 0

    def corrections(
        self,
        model: PreTrainedModel,
        groups: Mapping[str, UnitGroup],
        plan: PruningPlan,
        samples: torch.Tensor,
        cache: Cache,
        scored: int = 0,
    ) -> dict[str, Correction]:
        """Return what the linear maps that read the units that leave become; the model is bit-identical afterwards.

        Args:
            model: before the cut, in evaluation mode.
            groups: what may be cut.
            plan: what will be cut.
            samples: calibration token ids, (N, T).
            cache: where the moments of the inputs are kept: another plan for the same model costs its solve only.
            scored: the first so many samples are those that the units were scored on, inside `while_scoring`.

        Returns:
            Name of the linear map -> its correction.
        """
        return {}

    def while_scoring(
        self, model: PreTrainedModel, groups: Mapping[str, UnitGroup], samples: torch.Tensor, cache: Cache
    ) -> AbstractContextManager[None]:
        """Return the context in which units are scored on samples (N, T) that `corrections` will be asked for too."""
        return nullcontext()

    def finish(
        self,
        model: PreTrainedModel,
        groups: Mapping[str, UnitGroup],
        plan: PruningPlan,
        outputs: Sequence[str],
        samples: torch.Tensor,
        so_far: Mapping[str, Correction],
    ) -> dict[str, Correction]:
        """Return the corrections of the final plan, with what can only be told once it is carried out.

        Args:
            model: before the cut; bit-identical afterwards.
            groups: what may be cut.
            plan: what will be cut.
            outputs: the linear maps whose outputs attention and MLPs add to the residual stream.
            samples: calibration token ids, (N, T).
            so_far: what `corrections` returned.
        """
        return dict(so_far)


@dataclass
class NoCompensation(Compensation):
    """The weights that stay are what they were."""


@dataclass
class CalibratedCompensation(Compensation):
    """Base of the compensations that are made from the inputs of the linear maps that read units.

    Those are attention's output projection and the MLP's down projection. Units that no single linear map reads (hidden
    width, experts, depth) leave uncompensated.
    """

    samples: int = 128
    """Blocks of calibration text, from the run's `data` source."""

    length: int = 128
    """Tokens in each block."""

    batch_size: int = 8
    """Blocks run at once. Does not change the result beyond rounding."""

    layers_at_once: int | None = None
    """Layers whose moments are held at the same time; null for all. Fewer need less memory and more passes."""

    def __post_init__(self) -> None:
        for name in ("samples", "length", "batch_size", "layers_at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"compensation.{name}={value}: must be at least 1")

    def blocks_needed(self) -> tuple[int, int]:
        """Return the number and length (N, T) of the calibration blocks."""
        return self.samples, self.length

    def corrections(
        self,
        model: PreTrainedModel,
        groups: Mapping[str, UnitGroup],
        plan: PruningPlan,
        samples: torch.Tensor,
        cache: Cache,
        scored: int = 0,
    ) -> dict[str, Correction]:
        """Return the correction of every linear map that loses inputs; see the base class.

        Raises:
            ValueError: the moments of a linear map's inputs are not finite or cannot be inverted.
        """
        from pruning.compensation.moments import input_moments, kept_inputs
        from pruning.importance.readers import weight_of

        corrections: dict[str, Correction] = {}
        if not (inputs := kept_inputs(model, groups, plan)):
            return corrections
        moments = input_moments(model, groups, samples, cache, self.batch_size, self.layers_at_once, scored)
        for reader, kept in inputs.items():
            found = moments.of(reader)
            if not found.second.diagonal().isfinite().all():  # which bounds the others
                raise ValueError(
                    f"compensation: the inputs of {reader} are not finite on the calibration text; "
                    "use model.dtype=float32, or check the text"
                )
            corrections[reader] = self.correct(reader, weight_of(model, reader), kept, found)
        return corrections

    def while_scoring(
        self, model: PreTrainedModel, groups: Mapping[str, UnitGroup], samples: torch.Tensor, cache: Cache
    ) -> AbstractContextManager[None]:
        """Return the context that takes the moments of the samples as they pass by, unless memory is short."""
        from pruning.compensation.moments import moments_in_passing

        return nullcontext() if self.layers_at_once else moments_in_passing(model, groups, samples, cache)

    def correct(self, reader: str, weight: torch.Tensor, kept: torch.Tensor, moments: InputMoments) -> Correction:
        """Return the correction of one linear map.

        Args:
            reader: its name.
            weight: W, (O, I).
            kept: which inputs stay, (I,) bool.
            moments: of its inputs.
        """
        raise NotImplementedError
