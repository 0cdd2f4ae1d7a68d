"""The command: `python -m pruning.export <checkpoint> <file>`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DTYPES = ("float32", "float16", "bfloat16")
FORMATS = ("gguf", "padded")


def main(arguments: list[str] | None = None) -> int:
    """Export a checkpoint; return the exit code: 0, or 1 after a message about what cannot be exported."""
    options = parse(arguments)
    try:
        export(options.checkpoint, options.file, options.to, options.dtype)
    except (ValueError, OSError) as error:
        print(f"cannot export: {error}", file=sys.stderr)
        return 1
    files = [options.file] if options.file.is_file() else list(options.file.iterdir())
    print(f"{options.file}: {sum(file.stat().st_size for file in files) / 2**20:,.1f} MiB")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pruning.export", description="Write a checkpoint, pruned or not, in another program's format."
    )
    parser.add_argument("checkpoint", type=Path, help="folder of a saved model, e.g. <run>/model")
    parser.add_argument("file", type=Path, help="what to write, e.g. model.gguf, or a folder for --to padded")
    parser.add_argument("--to", choices=FORMATS, help="format (default: what the ending of the file says)")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the weights (default: that of the checkpoint)")
    return parser.parse_args(arguments)


def export(checkpoint: Path, file: Path, to: str | None, dtype: str | None) -> None:
    """Load a checkpoint and write it to `file`.

    Args:
        checkpoint: folder with config.json, safetensors and tokenizer.
        file: what to write; replaced if it exists.
        to: one of FORMATS; None for what the ending of `file` says.
        dtype: one of DTYPES; None for the type that the checkpoint's configuration names.

    Raises:
        ValueError: nothing can be loaded from `checkpoint`, or its architecture or tokenizer has no place in the format.
    """
    to = to or file.suffix.removeprefix(".")
    if to not in FORMATS:
        raise ValueError(f"{file}: the ending names no format; end it in .gguf, or give --to {_listed(FORMATS)}")
    if not (checkpoint / "config.json").exists():
        raise ValueError(f"{checkpoint}: this folder is no checkpoint: it holds no config.json")
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from pruning.checkpoint import load_checkpoint, save_checkpoint
    from pruning.export.gguf_file import export_gguf
    from pruning.export.padded import pad_to_equal_widths
    from pruning.families import find_layout

    dtype = dtype or str(AutoConfig.from_pretrained(checkpoint).dtype or "float32").removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"{checkpoint}: its weights are {dtype}; choose --dtype {_listed(DTYPES)}")
    kind = getattr(torch, dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{checkpoint}: its tokenizer cannot be loaded: {error}") from error
    model = load_checkpoint(checkpoint, kind)
    if to == "padded":
        save_checkpoint(pad_to_equal_widths(model, find_layout(model)), tokenizer, file)
    else:
        export_gguf(model, tokenizer, file, kind)


def _listed(names: tuple[str, ...], before: str = "") -> str:
    return ", ".join(before + name for name in names)


if __name__ == "__main__":
    sys.exit(main())
