"""SharedContextLM against lm-eval's HFLM and against a loop that scores one request at a time."""

from __future__ import annotations

import random

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from evaluation.prefix_trees import OPEN, Job, pack, token_budget
from evaluation.scorer import SharedContextLM

MAX_LENGTH = 48
NATS = 1e-3
PARAGRAPH = "A tall man walks along the river and looks for the bridge that he crossed when he was a child."
PAIRS = [
    # Choices of one item, among them one that begins like another, one that is another's beginning, and one twice.
    *[("The dog sat on the", end) for end in (" mat", " mat again", " matter", " red chair", " mat")],
    # Single-token choices.
    *[("Is the sea blue? Answer:", end) for end in (" a", " b")],
    # The context differs, the continuation is shared.
    *[(f"The cup did not fit in the box because the {noun}", " was too large") for noun in ("cup", "box")],
    # Spaces at the end of the context belong to the continuation.
    *[("The dog sat on the ", end) for end in ("mat", "chair")],
    ("The dog sat  ", "down"),
    # Nothing to condition on.
    ("", "Words without context"),
    ("", "Words"),
    # Longer than the context length: cut from the left, differently for continuations of different length.
    *[(PARAGRAPH * 4, end) for end in (" The end.", " The end is near.", "!")],
    ("One request alone in the", " world"),
]


def requests(pairs: list[tuple[str, str]]) -> list[Instance]:
    """Wrap pairs as lm-eval does."""
    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with some merges, so that a continuation may merge with its context."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([PARAGRAPH, *(context + end for context, end in PAIRS)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


LLAMA = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": MAX_LENGTH,
    # The usual 0.02 gives nearly the same score whatever the context: nothing would show.
    "initializer_range": 0.3,
}


def narrow_llama() -> LlamaForCausalLM:
    """A Llama whose middle layer has one key-value head of two and a narrower feed-forward block."""
    model = LlamaForCausalLM(LlamaConfig(**LLAMA))
    layer = model.model.layers[1]
    for module, name, shape in (
        (layer.self_attn, "q_proj", (32, 16)),
        (layer.self_attn, "k_proj", (32, 8)),
        (layer.self_attn, "v_proj", (32, 8)),
        (layer.self_attn, "o_proj", (16, 32)),
        (layer.mlp, "gate_proj", (32, 20)),
        (layer.mlp, "up_proj", (32, 20)),
        (layer.mlp, "down_proj", (20, 32)),
    ):
        setattr(module, name, nn.Linear(*shape, bias=False))
    return model


def build(kind: str) -> PreTrainedModel:
    """A tiny random model in fp32, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "llama":
            model = LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True))
        elif kind == "narrow":
            model = narrow_llama()
        elif kind == "eager":
            model = LlamaForCausalLM(LlamaConfig(**LLAMA, attn_implementation="eager"))
        elif kind == "window":
            model = MistralForCausalLM(MistralConfig(**LLAMA, sliding_window=8))
        elif kind == "softcap":
            model = Gemma2ForCausalLM(Gemma2Config(**LLAMA, final_logit_softcapping=3.0, sliding_window=8))
        elif kind == "gpt2":
            sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": MAX_LENGTH}
            model = GPT2LMHeadModel(GPT2Config(vocab_size=320, initializer_range=0.3, **sizes))
        else:
            sizes = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "seq_length": MAX_LENGTH}
            model = BloomForCausalLM(BloomConfig(vocab_size=320, initializer_range=0.3, **sizes))
    return model.eval()


KINDS = ("llama", "narrow", "eager", "window", "softcap", "gpt2", "bloom")


@torch.no_grad()
def one_by_one(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> list[tuple[float, bool]]:
    """Score PAIRS (nats, greedy) the slow and obvious way."""
    scores = []
    for context, end in PAIRS:
        bare = context.rstrip(" ")
        head = tokenizer.encode(bare) if bare else [tokenizer.bos_token_id]
        whole = tokenizer.encode(context + end) if bare else head + tokenizer.encode(end)
        whole, count = whole[-MAX_LENGTH - 1 :], len(whole) - len(head)
        logits = model(torch.tensor([whole[:-1]])).logits[0, -count:].double()
        targets = torch.tensor(whole[-count:])
        nats = logits.log_softmax(-1)[torch.arange(count), targets].sum()
        scores.append((float(nats), bool((logits.argmax(-1) == targets).all())))
    return scores


def assert_same(found: list[tuple[float, bool]], wanted: list[tuple[float, bool]]) -> None:
    """Same nats up to rounding and same greedy flags."""
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in wanted], abs=NATS)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_hflm_and_of_a_plain_loop(kind: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Every kind of request on every kind of model, whichever shortcuts the model allows."""
    model = build(kind)
    options = {"max_length": MAX_LENGTH}
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=8, **options)
    ours = SharedContextLM(model, tokenizer, **options)
    found = ours.loglikelihood(requests(PAIRS), disable_tqdm=True)
    assert_same(found, theirs.loglikelihood(requests(PAIRS), disable_tqdm=True))
    assert_same(found, one_by_one(model, tokenizer))


@pytest.mark.parametrize(
    ("kind", "shares", "lean_head"),
    [
        ("llama", True, True),
        ("narrow", True, True),
        ("eager", True, True),
        ("gpt2", True, True),
        ("window", False, True),
        ("softcap", False, False),
        ("bloom", False, True),
    ],
)
def test_shortcuts_are_taken_only_where_exact(
    kind: str, shares: bool, lean_head: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    """ALiBi and windows forbid sharing, a soft cap forbids the head on single positions."""
    scorer = SharedContextLM(build(kind), tokenizer, max_length=MAX_LENGTH)
    assert (scorer._width > 0, scorer._lean_head) == (shares, lean_head)


def test_order_and_company_of_requests_do_not_matter(tokenizer: PreTrainedTokenizerFast) -> None:
    """A request gets the same score first or last, and with or without the others."""
    scorer = SharedContextLM(build("llama"), tokenizer, budget=token_budget(64))
    scores = dict(zip(PAIRS, scorer.loglikelihood(requests(PAIRS), disable_tqdm=True), strict=True))
    shuffled = random.Random(0).sample(PAIRS, len(PAIRS))
    again = scorer.loglikelihood(requests(shuffled), disable_tqdm=True)
    assert again == [scores[pair] for pair in shuffled]
    alone = [scorer.loglikelihood(requests([pair]), disable_tqdm=True)[0] for pair in PAIRS]
    assert_same(alone, [scores[pair] for pair in PAIRS])


def test_greedy_continuation_is_recognised(tokenizer: PreTrainedTokenizerFast) -> None:
    """What the model itself would say next is greedy, and only that."""
    model = build("narrow")
    scorer = SharedContextLM(model, tokenizer)
    context = tokenizer.encode("The dog sat")
    best = int(model(torch.tensor([context])).logits[0, -1].argmax())
    found = scorer._loglikelihood_tokens([(None, context, [best]), (None, context, [best - 1])])
    assert [greedy for _, greedy in found] == [True, False]


def test_packing_shares_prefixes_and_closes_branches() -> None:
    """Two branches on a stem of three make seven tokens; a stranger joins them in a short row only."""
    jobs = [Job(0, [1, 2, 3, 4, 5], [9]), Job(1, [1, 2, 3, 6, 7], [9]), Job(2, [8, 8], [9, 9])]
    tree, chain = pack(jobs, 100, 32)
    assert tree.tokens == [1, 2, 3, 4, 5, 6, 7]
    assert tree.positions == [0, 1, 2, 3, 4, 3, 4]
    assert tree.ends == [OPEN, OPEN, OPEN, 5, 5, OPEN, OPEN]
    assert chain.jobs == [(jobs[2], [0, 1])]
    assert [row.tokens for row in pack(jobs, 100, 0)] == [[1, 2, 3, 4, 5], [1, 2, 3, 6, 7], [8, 8]]
    assert len(pack(jobs, 6, 32)) == 3
    (forest,) = pack(jobs, 100, 64)
    assert forest.tokens == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert forest.positions == [0, 1, 2, 3, 4, 3, 4, 0, 1]
    assert forest.ends == [7, 7, 7, 5, 5, 7, 7, OPEN, OPEN]


def test_out_of_memory_halves_the_batch_and_says_so_once(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Scores survive a device that holds few tokens; one sequence that does not fit is an error."""
    scorer = SharedContextLM(build("llama"), tokenizer)
    wanted = scorer.loglikelihood(requests(PAIRS), disable_tqdm=True)
    run, room = scorer._states, MAX_LENGTH

    def small(rows: list) -> torch.Tensor:
        if len(rows) * max(len(row.tokens) for row in rows) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return run(rows)

    monkeypatch.setattr(scorer, "_states", small)
    assert_same(scorer.loglikelihood(requests(PAIRS), disable_tqdm=True), wanted)
    assert sum("out of memory" in record.message for record in caplog.records) == 1
    room = 3
    with pytest.raises(torch.OutOfMemoryError, match=r"no batch can be smaller.*model\.dtype=bfloat16"):
        scorer.loglikelihood(requests(PAIRS), disable_tqdm=True)


class FailingFirst(nn.Module):
    """Runs a model after it has raised an error a few times."""

    def __init__(self, model: nn.Module, error: str, times: int) -> None:
        super().__init__()
        self.forwards, self.error, self.times = model.forward, error, times

    def forward(self, **inputs: object) -> object:
        if self.times:
            self.times -= 1
            raise RuntimeError(self.error)
        return self.forwards(**inputs)


def test_a_processor_without_memory_is_given_smaller_batches(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """The allocator of the processor has no error class of its own: its words tell."""
    model = build("llama")
    wanted = SharedContextLM(model, tokenizer).loglikelihood(requests(PAIRS), disable_tqdm=True)
    scorer = SharedContextLM(model, tokenizer)
    error = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."
    failing = FailingFirst(model.model, error, times=3)
    model.model.forward = failing.forward
    assert_same(scorer.loglikelihood(requests(PAIRS), disable_tqdm=True), wanted)
    assert failing.times == 0
    assert scorer.budget.size <= 1024 // 8
    assert sum("out of memory" in record.message for record in caplog.records) == 1


def test_other_errors_are_not_taken_for_a_lack_of_memory(tokenizer: PreTrainedTokenizerFast) -> None:
    """They end the scoring as they are."""
    model = build("llama")
    scorer = SharedContextLM(model, tokenizer)
    model.model.forward = FailingFirst(model.model, "sizes do not match", times=1).forward
    with pytest.raises(RuntimeError, match="sizes do not match"):
        scorer.loglikelihood(requests(PAIRS), disable_tqdm=True)


def test_a_narrower_model_is_scored_in_the_same_batches(tokenizer: PreTrainedTokenizerFast) -> None:
    """Tokens, positions and masks of every batch are those of the wider model: no cut changes a shape."""

    def batches(hidden_size: int) -> list[dict[str, torch.Tensor]]:
        model = LlamaForCausalLM(LlamaConfig(**(LLAMA | {"hidden_size": hidden_size}))).eval()
        scorer, seen, forward = SharedContextLM(model, tokenizer, budget=token_budget(256)), [], model.model.forward

        def recorded(**inputs: torch.Tensor) -> object:
            seen.append(inputs)
            return forward(**inputs)

        model.model.forward = recorded
        scorer.loglikelihood(requests(PAIRS), disable_tqdm=True)
        return seen

    wide, narrow = batches(512), batches(16)
    assert len(wide) > 1
    assert len(wide) == len(narrow)
    assert any("attention_mask" in batch for batch in wide)
    for first, second in zip(wide, narrow, strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first if name != "use_cache")


def test_with_one_token_a_batch_every_sequence_is_alone(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No padding, no branches, and the scores of full batches."""
    model = build("llama")
    scorer = SharedContextLM(model, tokenizer, budget=token_budget(1))
    batches, run = [], scorer._states
    monkeypatch.setattr(scorer, "_states", lambda rows: batches.append(rows) or run(rows))
    alone = scorer.loglikelihood(requests(PAIRS), disable_tqdm=True)
    assert all(len(rows) == 1 and rows[0].is_chain for rows in batches)
    assert_same(alone, SharedContextLM(model, tokenizer).loglikelihood(requests(PAIRS), disable_tqdm=True))


def test_training_flags_survive(tokenizer: PreTrainedTokenizerFast) -> None:
    """Building, scoring and generating leave each submodule in the mode it had, and score without dropout."""
    model = build("gpt2")
    wanted = SharedContextLM(model, tokenizer).loglikelihood(requests(PAIRS), disable_tqdm=True)
    model.train()
    model.transformer.h[0].eval()
    flags = [module.training for module in model.modules()]
    scorer = SharedContextLM(model, tokenizer)
    assert scorer.loglikelihood(requests(PAIRS), disable_tqdm=True) == wanted
    assert [module.training for module in model.modules()] == flags


def test_rolling_and_generation_are_those_of_hflm(tokenizer: PreTrainedTokenizerFast) -> None:
    """Texts of several windows, and a greedy continuation."""
    model = build("narrow")
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=2)
    ours = SharedContextLM(model, tokenizer, batch_size=2)
    texts = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in (PARAGRAPH * 3, "Short.", PARAGRAPH)]
    wanted = theirs.loglikelihood_rolling(texts, disable_tqdm=True)
    assert ours.loglikelihood_rolling(texts, disable_tqdm=True) == pytest.approx(wanted, abs=NATS)
    options = {"until": ["."], "max_gen_toks": 5}
    prompts = [Instance("generate_until", {}, ("The dog", dict(options)), 0)]
    assert ours.generate_until(prompts, disable_tqdm=True) == theirs.generate_until(prompts, disable_tqdm=True)


@pytest.mark.parametrize("count", [0, MAX_LENGTH + 1])
def test_impossible_requests_are_refused(count: int, tokenizer: PreTrainedTokenizerFast) -> None:
    """A continuation must have a token and fit in the context length."""
    scorer = SharedContextLM(build("llama"), tokenizer)
    with pytest.raises(ValueError, match=f"{count} continuation tokens"):
        scorer._loglikelihood_tokens([(None, [5], [7] * count)])
