"""LoRA recovery through peft on the pruned model, merged at the end. The factors are float32 whatever the model's type is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from recovery.trained import TrainedRecovery

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from pruning.removal import UnitRemoval


EXPERT_MAPS = ("gate_proj", "up_proj", "down_proj")
"""In a mixture peft takes these names for the experts' stacked weights, even where a layer has an ordinary MLP."""


class Quantization(Enum):
    """Type that the frozen weights have while adapters are trained."""

    nf4 = "nf4"


@dataclass
class Lora(TrainedRecovery):
    """Low-rank adapters on linear maps (all but the head unless `target_modules` says which)."""

    kind: ClassVar[str] = "adapters"
    is_adapter: ClassVar[bool] = True

    r: int = 16
    """Rank of the adapters."""

    alpha: int = 32
    """The update is scaled by alpha / r."""

    dropout: float = 0.0
    use_rslora: bool = False
    """Whether the update is scaled by alpha / sqrt(r) instead, which keeps its size for high ranks."""

    use_dora: bool = False
    """Whether the length of every row of the weight is trained apart from its direction."""

    quantize: Quantization | None = None
    """nf4: the frozen weights are held in 4 bits while adapters are trained (QLoRA), which are merged into the weights as they
    were. Needs a GPU and the package bitsandbytes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("r", "alpha"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"recovery.{name}={value}: must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"recovery.dropout={self.dropout}: must be in [0, 1)")

    def check_removal(self, removal: UnitRemoval, events: int) -> None:
        """Raise, too, where the weights that are trained beside are another copy; see the base class."""
        super().check_removal(removal, events)
        if removal.is_temporary and self.quantize:
            raise ValueError(
                f"recovery.quantize={self.quantize.value}: units are removed for a while from the weights themselves, which "
                "are not those in 4 bits; set it to null, or use removal=cut"
            )

    def check_model(self, model: PreTrainedModel) -> None:
        """Raise where the model cannot be trained as asked for."""
        super().check_model(model)
        if self.quantize:
            from recovery.quantized import require_bitsandbytes

            require_bitsandbytes(model.device.type)

    def trained_maps(self, model: PreTrainedModel, cut_maps: Collection[str] | None) -> list[str]:
        """Return the names of the linear maps that are trained; of a mixture those that peft does not take for its experts."""
        names = super().trained_maps(model, cut_maps)
        if not any(weight.dim() == 3 for weight in model.parameters()):
            return names
        return [name for name in names if name.rpartition(".")[2] not in EXPERT_MAPS]

    def adapt(self, model: PreTrainedModel, maps: Sequence[str]) -> nn.Module:
        """Return the model with adapters; a quantised copy of it where that is asked for."""
        from peft import LoraConfig, get_peft_model

        from recovery.targets import shortest_endings

        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=shortest_endings(model, maps),
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            task_type="CAUSAL_LM",
        )
        if self.quantize:
            from recovery.quantized import quantized_copy

            model = quantized_copy(model, maps)
        return get_peft_model(model, config)

    def keep(self, trained: Any, folder: Path) -> None:
        """Write the adapters in peft's own format, and take them out of the model."""
        trained.save_pretrained(str(folder))
        trained.unload()

    def take(self, model: PreTrainedModel, folder: Path, batch: torch.Tensor) -> float:
        """Merge the adapters in float32; return the error on a batch of blocks (B, T) or rows (B, 3, T)."""
        import torch
        from peft import PeftModel
        from peft.tuners.lora import LoraLayer

        from pruning.packing import model_inputs

        adapted = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=True).eval()
        layers: list[Any] = [module.get_base_layer() for module in adapted.modules() if isinstance(module, LoraLayer)]
        types = [layer.weight.dtype for layer in layers]
        with torch.no_grad():
            before = model(**model_inputs(batch), use_cache=False).logits.float()
            for layer in layers:
                layer.weight.data = layer.weight.data.float()
            merged = adapted.merge_and_unload()
            assert merged is model
            for layer, dtype in zip(layers, types, strict=True):
                layer.weight.data = layer.weight.data.to(dtype)
            after = model(**model_inputs(batch), use_cache=False).logits.float()
        return float((after - before).abs().max() / before.abs().max())
