"""Full fine-tuning of the linear maps that pruning cuts, or of chosen ones; everything else stays.

What is kept are the trained weights themselves, in safetensors: a difference would not add up to them to the last bit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from recovery.trained import TrainedRecovery

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

WEIGHTS = "weights.safetensors"


@dataclass
class FullFineTuning(TrainedRecovery):
    """Trains weights and biases of linear maps: those that pruning may cut, unless `target_modules` says which."""

    kind: ClassVar[str] = "fine_tuned"
    trains_base: ClassVar[bool] = True

    def check_model(self, model: PreTrainedModel) -> None:
        """Raise where the model cannot be trained as asked for."""
        import torch

        super().check_model(model)
        if model.dtype == torch.float16:
            raise ValueError(
                "model.dtype=float16: recovery=full would lose small gradients; use bfloat16 or float32, or recovery=lora"
            )

    def trained_maps(self, model: PreTrainedModel, cut_maps: Collection[str] | None) -> list[str]:
        """Return the names of the linear maps that are trained."""
        return list(cut_maps) if cut_maps and self.target_modules is None else super().trained_maps(model, cut_maps)

    def adapt(self, model: PreTrainedModel, maps: Sequence[str]) -> nn.Module:
        """Return the model, of which only these maps require gradients; they are float32 while they are trained."""
        model.requires_grad_(False)
        for name in maps:
            for weight in model.get_submodule(name).parameters():
                weight.data = weight.data.float()
                weight.requires_grad_(True)
        return model

    def computing(self, model: PreTrainedModel) -> AbstractContextManager[Any]:
        """Return a context in which float32 weights work with activations of the model's own type."""
        import torch

        from pruning.layout import weight_of

        own = weight_of(model.get_input_embeddings()).dtype
        return nullcontext() if own == torch.float32 else torch.autocast(model.device.type, own)

    def keep(self, trained: nn.Module, folder: Path) -> None:
        """Write the trained weights in the model's own type."""
        from safetensors.torch import save_file

        from recovery.kept_state import trained_weights

        own = trained.get_input_embeddings().weight.dtype  # type: ignore[operator]
        weights = {name: weight.to(own).cpu() for name, weight in trained_weights(trained).items()}
        for name, weight in weights.items():
            parameter = trained.get_parameter(name)
            parameter.data = weight.to(parameter.device)
        save_file(weights, folder / WEIGHTS)

    def take(self, model: PreTrainedModel, folder: Path, batch: torch.Tensor) -> float:
        """Put the trained weights in their places; there is nothing to merge, and so no error."""
        from safetensors.torch import load_file

        from recovery.kept_state import load_weights

        load_weights(model, load_file(folder / WEIGHTS))
        return 0.0
