"""Where models come from: a hub id, a folder, a GGUF file, a file inside an installed package, or random weights.

A GGUF file is unpacked once and kept as safetensors in the cache, because reading it takes half a minute. Weights that
stay quantised are refused: rows cannot be cut out of packed blocks.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from pruning.bundled import PREFIX, packaged_path
from pruning.cache import Cache, file_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class Dtype(Enum):
    """Floating-point type of the weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass
class ModelSource:
    """Base of the `model` options."""

    name: str = MISSING
    """Short name used in run folders, tables and tags."""

    dtype: Dtype = Dtype.float32
    """Type of the weights in memory and in the checkpoint."""

    def load(self, cache: Cache, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return the model in evaluation mode on `device`, and its tokenizer."""
        raise NotImplementedError


@dataclass
class PretrainedSource(ModelSource):
    """A trained model from a hub id, a folder, a GGUF file, or `package:<package>/<file>`."""

    path: str = MISSING
    """Hub id, folder with config.json, .gguf file, or package:<installed package>/<file inside it>."""

    revision: str | None = None
    """Branch, tag or commit of a hub id."""

    trust_remote_code: bool = False
    """Whether code that comes with the model may be run."""

    def load(self, cache: Cache, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return the model in evaluation mode on `device`, and its tokenizer.

        Raises:
            ValueError: nothing that can be loaded is at `path`; the message says what was looked for.
        """
        place = resolve_path(self.path)
        if place.endswith(".gguf"):
            place = str(unpack_gguf(Path(place), cache))
        return load_pretrained(
            place, self.dtype, device, revision=self.revision, trust_remote_code=self.trust_remote_code
        )


@dataclass
class RandomLlamaSource(ModelSource):
    """A small LLaMA with random weights and a byte tokenizer: for tests, and for trying a configuration in seconds."""

    hidden_size: int = 64
    intermediate_size: int = 128
    layers: int = 8
    query_heads: int = 4
    kv_heads: int = 2
    seed: int = 0

    def load(self, cache: Cache, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return the model in evaluation mode on `device`, and its tokenizer. The same seed gives the same weights."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = byte_tokenizer()
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.query_heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = LlamaForCausalLM(config)
        model.to(getattr(torch, self.dtype.value))
        return placed(model, device), tokenizer


def resolve_path(path: str) -> str:
    """Return a hub id as it is, and everything else as the path of an existing file or folder."""
    if path.startswith(PREFIX):
        package, _, relative = path.removeprefix(PREFIX).partition("/")
        return str(packaged_path(package, relative))
    place = Path(path).expanduser()
    if place.exists():
        return str(place.absolute())
    looks_like_a_path = path.endswith(".gguf") or path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_like_a_path:
        raise ValueError(f"model.path={path}: there is no such file or folder")
    return path


def unpack_gguf(path: Path, cache: Cache) -> Path:
    """Return a folder that holds the GGUF file's model as float32 safetensors, with its tokenizer."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"model.path={path}: this is no GGUF file (it does not begin with the letters GGUF)")

    def build(folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        log.info("unpacking %s (once; about half a minute)", path.name)
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        try:
            model = AutoModelForCausalLM.from_pretrained(
                **where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
            )
            tokenizer = AutoTokenizer.from_pretrained(**where)
        except Exception as error:
            raise ValueError(f"model.path={path}: this GGUF file cannot be read: {error}") from error
        model.config._name_or_path = path.stem
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return cache.folder("unpacked_gguf", {"sha256": file_digest(path)}, build)


def load_pretrained(
    place: str, dtype: Dtype, device: str, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model at a folder or hub id in evaluation mode, and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from pruning.checkpoint import is_pruned, load_checkpoint

    if Path(place).is_dir() and not (Path(place) / "config.json").exists():
        raise ValueError(f"model.path={place}: this folder is no model: it holds no config.json")
    try:
        config = AutoConfig.from_pretrained(place, **options)
        if getattr(config, "quantization_config", None):
            raise ValueError("its weights are quantised; rows cannot be cut out of packed blocks")
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        torch_dtype = getattr(torch, dtype.value)
        if is_pruned(config):
            model = load_checkpoint(Path(place), torch_dtype, trust_remote_code=options.get("trust_remote_code", False))
        else:
            model = AutoModelForCausalLM.from_pretrained(place, dtype=torch_dtype, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"model.path={place}: cannot be loaded as a causal language model: {error}\n"
            "Give a folder with config.json, safetensors and a tokenizer, a .gguf file, or a hub id (needs a network)."
        ) from error
    check_vocabulary(model, tokenizer, place)
    return placed(model, device), tokenizer


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """Raise where text would become tokens that the model has no embedding for.

    Tokens that were added to a vocabulary do not count: text holds none of them.
    """
    added = tokenizer.get_added_vocab()
    largest = max((index for token, index in tokenizer.get_vocab().items() if token not in added), default=0)
    embeddings: Any = model.get_input_embeddings()
    if largest >= (rows := len(embeddings.weight)):
        raise ValueError(
            f"model.path={place}: its tokenizer has tokens up to {largest}, but the model has embeddings for 0 to {rows - 1}: "
            "they belong to different models; put the model's own tokenizer into the folder"
        )


def placed(model: PreTrainedModel, device: str) -> PreTrainedModel:
    """Return the model on `device`, in evaluation mode."""
    import torch

    torch.nn.Module.to(model, device)
    return model.eval()


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer with one token per byte, after a begin and an end token (258 tokens)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    begin, end = "<s>", "</s>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([begin, end, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end, pad_token=end)


def fingerprint(model: PreTrainedModel) -> str:
    """Return a hash of the model's configuration and of every weight, bit by bit."""
    import torch

    config = model.config.to_dict()
    for transient in ("_name_or_path", "transformers_version", "architectures", "dtype", "auto_map"):
        config.pop(transient, None)
    total = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()[:20]


def count_parameters(model: PreTrainedModel) -> int:
    """Return the number of parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def choose_device(device: str) -> str:
    """Return `device`, with `auto` resolved to an accelerator if there is one."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device}: cannot be used here ({error}); use auto or cpu") from error
    return device
