"""Requests packed as prefix trees of tokens, so that what several of them begin with is computed once.

The surprise: a row is a depth-first walk of its trees, so the tokens below a node are contiguous and "token i sees
token j" is just ``j <= i < end[j]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from evaluation.batch_size import BatchSize

OPEN = 1 << 30
TOKENS_PER_BATCH = 1024
FIX = "Use a smaller type (model.dtype=bfloat16) or another device, or leave the task out of evaluation.tasks"


def token_budget(tokens: int = TOKENS_PER_BATCH) -> BatchSize:
    """Return how many tokens may be in a batch; 1 for one sequence in each."""
    return BatchSize(tokens, "tokens", FIX)


class Job(NamedTuple):
    """One request: its place in the list, the tokens fed to the model, and the last tokens to predict."""

    place: int
    inputs: list[int]
    targets: list[int]


@dataclass
class Row:
    """One or more prefix trees of token sequences, laid out depth first.

    Attributes:
        tokens: token of each node.
        positions: depth of each node, which is its position in its own sequence.
        ends: index just past the last descendant of each node; ``OPEN`` while the tree can still grow below it.
        path: nodes of the sequence added last.
        jobs: every job, with the nodes whose logits predict its targets.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    path: list[int] = field(default_factory=list)
    jobs: list[tuple[Job, list[int]]] = field(default_factory=list)

    @property
    def is_chain(self) -> bool:
        """Whether no node has two children, so that plain causal attention is right."""
        return len(self.path) == len(self.tokens)

    def shared(self, inputs: list[int]) -> int:
        """Length of the prefix that ``inputs`` has in common with the sequence added last."""
        pairs = enumerate(zip(self.path, inputs, strict=False))
        return next((i for i, (node, token) in pairs if self.tokens[node] != token), min(len(self.path), len(inputs)))

    def takes(self, inputs: list[int], shared: int, capacity: int, width: int) -> bool:
        """Whether ``inputs``, of which the last path has the first ``shared`` tokens, belongs in this row."""
        if self.is_chain and shared == len(self.path):
            return True
        # A token costs about 24 * width**2 FLOP in a layer, an attended pair 4 * width. Sharing saves tokens, but the
        # masked pairs between branches are computed as well; in a short row they are next to nothing, so that even
        # strangers (shared == 0) go together there, which saves padding.
        new = len(inputs) - shared
        size = len(self.tokens) + new
        pays = 2 * new * (len(self.tokens) - shared) < 6 * width * shared or size <= width // 4
        return pays and size <= capacity

    def add(self, job: Job, shared: int) -> None:
        """Append the part of ``job.inputs`` behind its first ``shared`` tokens, which the last path has already."""
        size, new = len(self.tokens), job.inputs[shared:]
        for node in self.path[shared:]:
            self.ends[node] = size
        self.path = self.path[:shared] + list(range(size, size + len(new)))
        self.tokens += new
        self.positions += range(shared, len(job.inputs))
        self.ends += [OPEN] * len(new)
        self.jobs.append((job, self.path[-len(job.targets) :]))


def pack(jobs: Sequence[Job], capacity: int, width: int) -> list[Row]:
    """Pack jobs into as few tokens as pays off.

    Args:
        jobs: what to score, in any order: the rows do not depend on it.
        capacity: most tokens in a row of several branches.
        width: hidden size for which branches must pay off, or 0 to build none at all.

    Returns:
        Rows, the branching ones first, longest first: batches are padded little and the largest comes early.
    """
    rows: list[Row] = []
    for job in sorted(jobs, key=lambda job: (job.inputs, job.targets)):
        shared = rows[-1].shared(job.inputs) if rows else 0
        if not rows or not rows[-1].takes(job.inputs, shared, capacity, width):
            rows.append(Row())
            shared = 0
        rows[-1].add(job, shared)
    return sorted(rows, key=lambda row: (row.is_chain, -len(row.tokens)))
