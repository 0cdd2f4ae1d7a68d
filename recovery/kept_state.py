"""The trained weights at one step, set aside: what is taken should the training end badly, or past its best.

With it is kept how long the training has taken, so that one that goes on after a kill counts on from there.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


class KeptState:
    """The trained weights at one step."""

    def __init__(self) -> None:
        self.step: int | None = None
        """Steps of this training done when the weights were so; None while nothing is kept."""

        self.weights: dict[str, torch.Tensor] = {}
        self.started = time.monotonic()
        """When the training began; earlier by what the processes before this one took."""

    @property
    def seconds(self) -> float:
        """How long the training has taken, in all processes; what a kill threw away does not count."""
        return time.monotonic() - self.started

    def keep(self, weights: dict[str, torch.Tensor], step: int) -> None:
        """Keep these weights instead of what was kept."""
        self.weights, self.step = weights, step

    def restore(self, model: nn.Module) -> None:
        """Put what is kept back into the model it is from."""
        load_weights(model, self.weights)

    def save(self, path: Path) -> None:
        """Write to a file, whole or not at all."""
        temporary = path.with_suffix(".part")
        save_file(self.weights, temporary, {"step": str(self.step), "seconds": str(self.seconds)})
        temporary.replace(path)

    def load(self, path: Path) -> None:
        """Read what `save` wrote."""
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            known = file.metadata()
        self.keep(weights, int(known["step"]))
        self.started -= float(known["seconds"])


def trained_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of all parameters that are trained, by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Set parameters of the model, by name."""
    with torch.no_grad():
        for name, weight in weights.items():
            model.get_parameter(name).copy_(weight)
