"""A transformers tokenizer as the vocabulary of a GGUF file.

llama.cpp has two kinds of byte-pair encoding: over bytes, with text split by a rule that it knows by name (`gpt2`), and
over characters with bytes as a fallback, as SentencePiece does it (`llama`), where scores take the place of merges.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

SPLITS = {
    (("ByteLevel", True),): ("gpt-2", False),
    (("Digits", True), ("ByteLevel", True)): ("smollm", False),
    (("Split", CONTRACTIONS + r"\p{N}{1,3}" + OTHERS), ("ByteLevel", False)): ("llama-bpe", True),
    (("Split", CONTRACTIONS + r"\p{N}" + OTHERS), ("ByteLevel", False)): ("qwen2", False),
}
"""Steps that split text -> llama.cpp's name for them, and whether whole words are looked up before merging."""

NO_MERGE = "\u0120\u0120 \u0120\u0120"
"""A merge that never happens, for want of one that makes its parts: llama.cpp refuses a vocabulary without merges."""

MARK = "\N{LOWER ONE EIGHTH BLOCK}"
"""What stands for a space in SentencePiece vocabularies."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, and how text becomes tokens."""

    model: str
    """`gpt2` or `llama`."""

    split: str
    """llama.cpp's name of the rule that splits text."""

    tokens: list[str]
    types: list[TokenType]
    merges: list[str]
    """For `gpt2`: pairs with a space between them, the first merged first."""

    scores: list[float]
    """For `llama`: the higher, the sooner the token is merged."""

    space_prefix: bool
    """Whether a space is put before the text."""


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """Return the vocabulary of a tokenizer, filled up with unused tokens to the rows of the embedding.

    Raises:
        ValueError: the tokenizer is none that llama.cpp can be told of, or has more tokens than the embedding has rows.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{type(tokenizer).__name__}: only tokenizers that have a tokenizer.json can be exported")
    if len(tokenizer) > rows:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, but the embedding has {rows} rows")
    description = json.loads(backend.to_str())
    model = description["model"]
    if model["type"] != "BPE":
        raise ValueError(f"tokenizers of kind {model['type']} cannot be exported, only byte-pair encodings (BPE)")
    bytewise = not model["byte_fallback"]
    split, prefix = (_split_name(description), False) if bytewise else ("default", _space_prefix(description))
    tokens, types = _tokens(description, rows, bytewise, tokenizer.unk_token)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    rank = {pair.replace(" ", "", 1): -float(index) for index, pair in reversed(list(enumerate(merges)))}
    return Vocabulary(
        model="gpt2" if bytewise else "llama",
        split=split,
        tokens=tokens,
        types=types,
        merges=(merges or [NO_MERGE]) if bytewise else [],
        scores=[] if bytewise else [rank.get(token, -float(len(merges))) for token in tokens],
        space_prefix=prefix,
    )


def add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> None:
    """Put the vocabulary, the special tokens and the chat template into the metadata of a GGUF file."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "gpt2":
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.space_prefix)
    for name in ("bos", "eos", "unk", "pad"):
        if (token := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(ids[-1] == tokenizer.eos_token_id)
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)


def _tokens(
    description: dict[str, Any], rows: int, bytewise: bool, unknown: str | None
) -> tuple[list[str], list[TokenType]]:
    """Return text and type of every token by id; `unknown` is the token for unknown characters."""
    tokens, types = [f"[PAD{index}]" for index in range(rows)], [TokenType.UNUSED] * rows
    for token, index in description["model"]["vocab"].items():
        is_byte = not bytewise and len(token) == 6 and token.startswith("<0x")
        tokens[index], types[index] = token, TokenType.BYTE if is_byte else TokenType.NORMAL
    for added in description["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        is_unknown = not bytewise and added["content"] == unknown
        tokens[added["id"]], types[added["id"]] = added["content"], TokenType.UNKNOWN if is_unknown else kind
    return tokens, types


def _split_name(description: dict[str, Any]) -> str:
    """Return llama.cpp's name for how a byte-level tokenizer splits text.

    Raises:
        ValueError: it splits or normalises in a way that has no name here.
    """
    steps = _steps(description["pre_tokenizer"])
    key = tuple((step["type"], _setting(step)) for step in steps)
    normalizers = [step["type"] for step in _steps(description["normalizer"])]
    prefixed = any(step.get("add_prefix_space") for step in steps)
    if not description["model"]["merges"] and key and key[-1][0] == "ByteLevel" and not prefixed:
        key = (("ByteLevel", True),)  # nothing is merged, so it does not matter where text is split
    name, whole_words = SPLITS.get(key, (None, False))
    if name is None or prefixed or normalizers not in ([], ["NFC"]) or whole_words != _ignores_merges(description):
        known = ", ".join(known for known, _ in SPLITS.values())
        raise ValueError(
            f"the tokenizer splits text by {key} after {normalizers or 'no normalisation'}, which has no name in llama.cpp "
            f"that is known here; known are the splits of {known}, and SentencePiece's byte-pair encoding"
        )
    return name


def _ignores_merges(description: dict[str, Any]) -> bool:
    return bool(description["model"].get("ignore_merges"))


def _steps(component: dict[str, Any] | None) -> Sequence[dict[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer, which may be none, one or a sequence."""
    if component is None:
        return []
    return component.get("pretokenizers", component.get("normalizers", [component]))


def _setting(step: dict[str, Any]) -> Any:
    """Return the setting that tells steps of one type apart."""
    if step["type"] == "Split":
        return step["pattern"].get("Regex") if step["behavior"] == "Isolated" and not step["invert"] else None
    return step.get("use_regex", step.get("individual_digits"))


def _space_prefix(description: dict[str, Any]) -> bool:
    """Say whether a SentencePiece-like tokenizer puts a space before the text.

    Raises:
        ValueError: it does something else to the text than putting marks for spaces.
    """
    prefix = False
    for step in [*_steps(description["normalizer"]), *_steps(description["pre_tokenizer"])]:
        if step["type"] == "Metaspace" and step["replacement"] == MARK and not step["split"]:
            prefix |= step["prepend_scheme"] != "never"
        elif step["type"] == "Prepend" and step["prepend"] == MARK:
            prefix = True
        elif step["type"] != "Replace" or step["pattern"] != {"String": " "} or step["content"] != MARK:
            raise ValueError(
                f"the tokenizer changes text by {step}; of SentencePiece's kind, only those that put {MARK!r} for spaces "
                "(and before the text) can be exported"
            )
    return prefix
