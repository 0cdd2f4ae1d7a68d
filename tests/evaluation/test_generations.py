from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluation.generations import NEW_TOKENS, continue_prompts, generations_table


def test_the_likeliest_token_follows_each_time(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["The river ran ", "A stone under "]
    prompts = torch.tensor(tokenizer(texts)["input_ids"])
    llama.generation_config.repetition_penalty = 5.0  # what a checkpoint brings along does not count
    found = continue_prompts(llama, tokenizer, prompts)
    assert list(found) == texts
    for text, prompt in zip(texts, prompts, strict=True):
        ids = prompt.tolist()
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                ids.append(int(llama(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        assert found[text] == tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)


def test_a_prompt_is_a_row_and_a_stage_a_column(tmp_path: Path) -> None:
    assert generations_table(tmp_path)[1] == []
    stages = {"dense": {"a": "1", "b": "2"}, "recovered": {"a": "3"}}
    (tmp_path / "generations.json").write_text(json.dumps(stages), encoding="utf-8")
    assert generations_table(tmp_path) == (["prompt", "dense", "recovered"], [["a", "1", "3"], ["b", "2", None]])
