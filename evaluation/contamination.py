"""Is the text that a run is measured on known to the text that calibrates and recovers its model?

Two things are told apart. A tested text is *in domain* when it is of the same corpus, be it other documents of it: its
figures say little of text of other kinds. It is *contaminated* when the same documents are in both: they say little of
unseen text at all. The first is found by the names of the corpora, the second by the share of word sequences in common.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning.cache import Cache, digest
from pruning.documents import Documents, corpora_of, read_corpus
from pruning.text import AllowTested

if TYPE_CHECKING:
    import numpy as np

NGRAM = 13
"""Words in a sequence that is compared: as in GPT-3's decontamination (Brown et al. 2020, appendix C), which compares words in
lower case and without punctuation too. Words, not tokens: the same for every model, wherever a block begins."""

CONTAMINATED = 0.01
"""Share of a tested text's sequences, above which it is contaminated. Corpora that have nothing to do with each other
share none of them; the two halves of the bundled passages, which come from the same books, share 0.5 %."""

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
"""Characters of scripts that do not separate words (Thai, Lao, Burmese, Khmer, kana, Chinese): each counts as a word."""

WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")


@dataclass(frozen=True)
class Nearness:
    """How near a tested text is to the text that calibrates and recovers."""

    same_corpus: list[str]
    """Keys of the sources that are of the same corpus."""

    shares: dict[str, float]
    """Key of a source -> share of the tested text's word sequences that its training documents hold, in [0, 1]."""

    overlap: float
    """The same share for all sources together."""

    @property
    def contaminated(self) -> bool:
        """Whether the same documents are in both."""
        return self.overlap > CONTAMINATED

    @property
    def in_domain(self) -> bool:
        """Whether both are of the same corpus."""
        return bool(self.same_corpus) or self.contaminated

    def metrics(self) -> dict[str, float]:
        """Return the figures under their names without the text's."""
        return {
            "overlap": self.overlap,
            "in_domain": float(self.in_domain),
            "contaminated": float(self.contaminated),
        }


def check_tested_texts(
    sources: Sequence[Documents],
    allowed: AllowTested,
    texts: Mapping[str, str],
    probe: str,
    cache: Cache,
    *,
    out_of_domain: str | None = None,
) -> dict[str, float]:
    """Compare every text under test with the training documents, and refuse what was not asked for.

    Args:
        sources: the documents that calibrate and recover.
        allowed: `data.allow_tested`.
        texts: `evaluation.texts`: name -> bundled corpus or file.
        probe: `stability.text`: bundled corpus or file.
        cache: where overlaps are kept, which are the same for all runs of a sweep.
        out_of_domain: `stability.out_of_domain`: bundled corpus or file, or None.

    Returns:
        Metrics `text/<name>/overlap`, `in_domain`, `contaminated`, and `probe/...` of the same names.

    Raises:
        ValueError: a tested text is in domain or contaminated and `allowed` does not say so; the one out of domain is not.
    """
    tested = {f"text/{name}": (f"evaluation.texts.{name}", text) for name, text in texts.items()}
    tested["probe"] = ("stability.text", probe)
    if out_of_domain is not None:
        tested["text/out_of_domain"] = ("stability.out_of_domain", out_of_domain)
    metrics: dict[str, float] = {}
    for name, (key, text) in tested.items():
        near = nearness(read_corpus(text, key), corpora_of(text, key), sources, cache)
        require_allowed(near, allowed, f"{key}={text}")
        metrics |= {f"{name}/{measure}": value for measure, value in near.metrics().items()}
    if metrics.get("text/out_of_domain/in_domain"):
        raise ValueError(
            f"stability.out_of_domain={out_of_domain}: of the same corpus as the text that calibrates and recovers the model; "
            "give text of another corpus, or null"
        )
    return metrics


def require_allowed(near: Nearness, allowed: AllowTested, text: str) -> None:
    """Raise when a tested text is nearer to the calibration text than `allowed`; `text` is its key and value."""
    fix = "Calibrate or test on other text, or set data.allow_tested="
    if near.contaminated and allowed is not AllowTested.documents:
        worst = max(near.shares, key=lambda key: near.shares[key])
        raise ValueError(
            f"{text}: {near.overlap:.1%} of its {NGRAM}-word sequences are also in the text that calibrates and recovers the "
            f"model ({worst}); up to {CONTAMINATED:.0%} are allowed with data.allow_tested={allowed.value}. "
            f"{fix}documents, which marks its figures as contaminated"
        )
    if near.same_corpus and allowed is AllowTested.none:
        raise ValueError(
            f"{text}: of the same corpus as the text that calibrates and recovers the model "
            f"({', '.join(near.same_corpus)}), which data.allow_tested=none does not allow. "
            f"{fix}corpus, which marks its figures as in domain"
        )


def nearness(tested: Sequence[str], corpora: frozenset[str], sources: Sequence[Documents], cache: Cache) -> Nearness:
    """Compare the documents of a tested text, of the given corpora, with the training documents of the sources."""
    inputs = {"tested": digest(tested), "sources": [digest(source.train) for source in sources], "ngram": NGRAM}
    shares = cache.json("overlap", inputs, lambda: overlaps(tested, [source.train for source in sources]))
    return Nearness(
        same_corpus=[source.key for source in sources if source.corpora & corpora],
        shares={source.key: share for source, share in zip(sources, shares, strict=False)},
        overlap=shares[-1],
    )


def overlaps(tested: Sequence[str], sources: Sequence[Sequence[str]]) -> list[float]:
    """Return the share of the tested documents' word sequences that each source holds, and last that all hold together.

    Documents of fewer than `NGRAM` words have no sequence; without any the shares are 0.
    """
    import numpy as np

    wanted = sequences(tested)
    held = [np.isin(wanted, sequences(documents)) for documents in sources]
    together = np.logical_or.reduce(held)
    return [float(found.mean()) if len(found) else 0.0 for found in (*held, together)]


def sequences(documents: Sequence[str]) -> np.ndarray:
    """Return a 64-bit hash of every sequence of `NGRAM` words inside a document, (number of sequences,) uint64.

    Words are hashed one by one, their hashes combined as a polynomial modulo 2^64. Python hashes strings differently in
    every process: the values are to be compared, not kept.
    """
    import numpy as np

    factor = np.uint64(0x9E3779B97F4A7C15)
    found = [np.empty(0, np.uint64)]
    for document in documents:
        words = WORD.findall(document.lower())
        hashes = np.fromiter(map(hash, words), np.int64, len(words)).astype(np.uint64)
        count = len(words) - NGRAM + 1
        combined = np.zeros(max(0, count), np.uint64)
        for place in range(NGRAM if count > 0 else 0):
            combined = combined * factor + hashes[place : place + count]
        found.append(combined)
    return np.concatenate(found)


MARKS = {
    "contaminated": "documents of this text also calibrate and recover the model",
    "in domain": "other documents of the same corpus calibrate and recover the model",
}
"""What is said behind the name of a text that the model was not kept away from, and what it means."""


def mark(metrics: Mapping[str, float | None], text: str) -> str:
    """Return what stands behind the name of a tested text, `text/<name>` or `probe`; empty for one of another corpus."""
    for words in MARKS:
        if metrics.get(f"{text}/{words.replace(' ', '_')}"):
            return f" ({words})"
    return ""


def mark_notes(metrics: Mapping[str, float | None]) -> list[str]:
    """Return what the marks in the tables of these metrics mean."""
    texts = {name.removesuffix("/overlap") for name in metrics if name.endswith("/overlap")}
    found = {mark(metrics, text) for text in texts}
    return [f"{words}: {meaning}" for words, meaning in MARKS.items() if f" ({words})" in found]
