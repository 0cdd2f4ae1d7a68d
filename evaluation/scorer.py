"""An lm-eval model that scores loglikelihood requests with every shared token prefix computed once.

It gives the scores of lm-eval's own ``HFLM``, whose tokenisation, generation and chat template it inherits, faster: the
token sequences of all requests are packed as prefix trees in the rows of a batch, and vocabulary logits are computed
only where a token is scored.

Models for which the mask of such a row is wrong (ALiBi, sliding windows, recurrent layers) are found when the scorer is
built and get one row per distinct sequence instead.

The surprise: what goes into a batch depends on the requests alone, not on how wide the model is. So a cut never changes
the shapes in which a model is scored, which in bf16 would move its scores.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM

from evaluation.batch_size import BatchSize
from evaluation.prefix_trees import OPEN, Job, Row, pack, token_budget
from pruning.progress import loop

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

LOGIT_ROWS = 256
WIDTH = 576
"""Hidden size for which it is worked out what pays off in a row; that of the model itself shrinks when it is cut."""

UNSUPPORTED = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switch every submodule to evaluation mode and put each training flag back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class SharedContextLM(HFLM):
    """Scores requests of a causal Hugging Face model in nats, as ``HFLM`` does, with shared prefixes computed once."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        budget: BatchSize | None = None,
        batch_size: int = 8,
        **options: Any,
    ) -> None:
        """Wrap a loaded model and find out which shortcuts are right for it.

        Args:
            model: causal language model, on its device; neither weights nor training flags change.
            tokenizer: its tokenizer; as with ``HFLM``, it gets a padding token if it has none.
            budget: most tokens in a batch, padding included, unless one sequence alone is longer; halved when memory runs
                out. None: a `token_budget` of its own.
            batch_size: prompts generated together, and windows of a long text scored in one go.
            options: passed on to ``HFLM``, for instance ``max_length`` or ``add_bos_token``.
        """
        with evaluating(model):
            super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size, **options)
            self.budget = budget or token_budget()
            self._lean_head, self._width = False, 0
            self._take_exact_shortcuts()

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score (context, continuation) pairs: nats of the continuation, and whether greedy decoding gives it."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts in nats, each token once, in windows of the model's full context length."""
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate exactly as ``HFLM`` does."""
        with evaluating(self.model):
            return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Score (key, context tokens, continuation tokens); ``override_bs``, a count of rows, has no meaning here."""
        rows = self._pack([self._job(place, context, tail) for place, (_, context, tail) in enumerate(requests)])
        scores: dict[int, tuple[float, bool]] = {}
        with evaluating(self.model), loop("requests", len(requests)) as step:
            while rows:
                batch = self._next_batch(rows)
                try:
                    scored = self._score(batch)
                except RuntimeError as error:
                    tokens = sum(len(row.tokens) for row in batch)
                    self.budget.halve(error, tokens, least=len(batch) == 1 and batch[0].is_chain)
                    rows = self._pack([job for row in rows for job, _ in row.jobs])
                else:
                    rows = rows[len(batch) :]
                    scores |= scored
                    step(len(scored))
        for place, (key, _, _) in enumerate(requests):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, scores[place])
        return [scores[place] for place in range(len(requests))]

    def _job(self, place: int, context: list[int], continuation: list[int]) -> Job:
        """Cut a request from the left to the context length; its last token is predicted but never fed."""
        if not context or not 0 < len(continuation) <= self.max_length:
            raise ValueError(
                f"request {place} has {len(context)} context and {len(continuation)} continuation tokens;"
                f" at least 1 of each and at most {self.max_length} to score are needed"
            )
        return Job(place, (context + continuation)[-self.max_length - 1 : -1], continuation)

    def _pack(self, jobs: list[Job]) -> list[Row]:
        return pack(jobs, self.budget.size, self._width)

    def _next_batch(self, rows: list[Row]) -> list[Row]:
        """Take rows from the front while, padded to the longest, they stay within the budget."""
        count = max(1, self.budget.size // len(rows[0].tokens))
        return [row for row in rows[:count] if row.is_chain == rows[0].is_chain]

    @torch.inference_mode()
    def _score(self, rows: list[Row]) -> dict[int, tuple[float, bool]]:
        """Run a batch; for the place of each job: nats of its targets, whether each of them has the highest logit."""
        states, length = self._states(rows), max(len(row.tokens) for row in rows)
        jobs = [job for row in rows for job, _ in row.jobs]
        nodes = [i * length + node for i, row in enumerate(rows) for _, nodes in row.jobs for node in nodes]
        targets = torch.tensor([token for job in jobs for token in job.targets], device=self.device)
        nats = torch.empty(len(targets), device=self.device)
        greedy = torch.empty(len(targets), dtype=torch.bool, device=self.device)
        unique, inverse = torch.tensor(nodes, device=self.device).unique(return_inverse=True)
        for start in range(0, len(unique), LOGIT_ROWS):
            logits = self._logits(states[unique[start : start + LOGIT_ROWS]])
            here = ((inverse >= start) & (inverse < start + LOGIT_ROWS)).nonzero().squeeze(1)
            node, target = inverse[here] - start, targets[here]
            top, best = logits.max(-1)
            logits -= top[:, None]
            chosen = logits[node, target]
            nats[here] = chosen - logits.exp_().sum(-1).log()[node]
            greedy[here] = best[node] == target
        sizes = [len(job.targets) for job in jobs]
        parts = zip(jobs, nats.cpu().split(sizes), greedy.cpu().split(sizes), strict=True)
        return {job.place: (float(score.sum()), bool(match.all())) for job, score, match in parts}

    def _states(self, rows: list[Row]) -> torch.Tensor:
        """Run the model: last hidden states (B * T, D) if the head is applied apart, else logits (B * T, V)."""
        length = max(len(row.tokens) for row in rows)

        def padded(lists: list[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([values + [fill] * (length - len(values)) for values in lists], device=self.device)

        inputs: dict[str, Any] = {"input_ids": padded([row.tokens for row in rows], 0), "use_cache": False}
        if not all(row.is_chain for row in rows):
            index = torch.arange(length, device=self.device)
            ends = padded([row.ends for row in rows], OPEN)
            unseen = (index[None, :] > index[:, None]) | (index[None, :, None] >= ends[:, None, :])  # (B, T, T)
            mask = torch.zeros(unseen.shape, dtype=self.model.dtype, device=self.device)
            inputs["attention_mask"] = mask.masked_fill_(unseen, torch.finfo(mask.dtype).min)[:, None]
            inputs["position_ids"] = padded([row.positions for row in rows], 0)
        body = self.model.base_model if self._lean_head else self.model
        return body(**inputs)[0].flatten(0, 1)

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        """Turn states (N, D) or (N, V) of ``_states`` into fp32 logits (N, V)."""
        return (self.model.get_output_embeddings()(states) if self._lean_head else states).float()

    def _take_exact_shortcuts(self) -> None:
        """Switch on the lean head and the branching rows where they reproduce the model's own logits."""
        name, config = type(self.model).__name__, self.model.config.get_text_config()
        truth = self._probe()
        # A soft cap hardly moves the small logits of made-up tokens, so the comparison could miss it.
        self._lean_head = not getattr(config, "final_logit_softcapping", None)
        if self._lean_head and not self._reproduces(truth):
            self._lean_head = False
        if not self._lean_head:
            logger.warning("%s: vocabulary logits are computed at every token", name)
        # Windows do not show on short sequences either, and a mask given by us would switch them off.
        windows = [getattr(config, key, None) for key in ("sliding_window", "attention_chunk_size")]
        if not any(window and window < self.max_length for window in windows):
            self._width = WIDTH
        if self._width and not self._reproduces(truth):
            self._width = 0
        if not self._width:
            logger.warning("%s: prefixes are not shared, each sequence is a row", name)

    def _reproduces(self, truth: torch.Tensor) -> bool:
        """Whether the shortcuts switched on give the logits ``truth`` (N, V), up to rounding in the model's dtype."""
        try:
            error = self._probe() - truth
        except UNSUPPORTED:
            return False
        return bool(error.square().mean() <= torch.finfo(self.model.dtype).eps * truth.var())

    @torch.inference_mode()
    def _probe(self) -> torch.Tensor:
        """Logits (N, V) of a few made-up sequences with common prefixes, in an order that packing does not change."""
        tokens = [(7919 * i + 1) % self.model.get_input_embeddings().num_embeddings for i in range(24)]
        tails = (tokens[8:9], tokens[9:14], tokens[9:11] + tokens[14:18], tokens[18:])
        found: dict[int, torch.Tensor] = {}
        for row in pack([Job(i, tokens[:8] + tail, tail) for i, tail in enumerate(tails)], OPEN, self._width):
            states = self._states([row])
            found |= {job.place: self._logits(states[nodes]) for job, nodes in row.jobs}
        return torch.cat([found[place] for place in range(len(tails))])
