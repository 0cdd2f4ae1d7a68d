"""Input that a run cannot work with is refused while the run is prepared, before any work, with what is wrong and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.test_zeroshot import made, write
from tests.test_walk import WATCHED, bench

RECORDS = [{"instruction": f"Say {index}.", "output": f"It is {index}, and so on."} for index in range(40)]


def instructions(path: Path, *options: str) -> list[str]:
    own = "+recovery.data={chat: {source: instructions, path: %s}}"
    return [*WATCHED, own % path, *options]


def test_a_record_that_lacks_a_field_is_named_by_its_line(tmp_path: Path) -> None:
    write(tmp_path / "chat.jsonl", [*RECORDS[:2], {"instruction": "Say 3.", "response": "3"}])
    message = r"recovery\.data\.chat\.path=.*chat\.jsonl, line 3: no text under 'output'; it has \['instruction', 'response'\]"
    with pytest.raises(ValueError, match=message):
        bench(tmp_path, *instructions(tmp_path / "chat.jsonl"))


def test_records_of_which_none_fits_into_a_row_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "chat.jsonl", RECORDS)
    with pytest.raises(ValueError, match=r"recovery\.length=24, from recovery\.data\.chat: none of \d+ examples fits"):
        bench(tmp_path, *instructions(tmp_path / "chat.jsonl"))


def test_a_validation_part_without_a_block_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("\n\n".join(f"The boat number {index} is on its way to the sea." for index in range(40)), "utf-8")
    own = f"+recovery.data={{short: {{path: {text}}}}}"
    early = ["recovery.patience=2", "recovery.watch_every=1"]
    with pytest.raises(
        ValueError, match=r"recovery\.patience: no block is left to validate on: the held-out text has only"
    ):
        bench(tmp_path, *WATCHED, own, *early)
    text.write_text("A single document has no second one that could be held out. " * 40, "utf-8")
    with pytest.raises(ValueError, match=r"the held-out part of recovery\.data\.short: .* the text has only 0 tokens"):
        bench(tmp_path, *WATCHED, own, *early)


def test_more_items_than_there_are_are_all_scored_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "items" / "piqa.jsonl", made("piqa"))
    items = ["evaluation.tasks=[piqa]", f"evaluation.data_dir={tmp_path / 'items'}", "evaluation.items=1000"]
    bench(tmp_path, *items)
    assert "evaluation.items=1000: piqa has 12 items; all of them are scored" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["evaluation.tasks=[piqaa]", "evaluation.data_dir={items}"], r"no piqaa\.jsonl there, only \['piqa'\]"),
        (
            ["stability.blocks=1000000"],
            r"stability\.text=passages: 1000000 windows of 24 tokens asked for, but the text",
        ),
        (["data=local", "data.path={text}"], r"data\.calibration_samples=4, of which 4 from data: 4 windows"),
        (
            ["+evaluation.texts.mine={text}", "evaluation.text_tokens=4096"],
            r"evaluation\.texts\.mine=.*: 32 windows of 128",
        ),
        (
            ["recovery=lora", "schedule=linear", "schedule.events=4", "recovery.when=each", "recovery.steps=2"],
            r"recovery\.steps=2: too few to recover after each of 4 events",
        ),
        (
            ["recovery=lora", "flatness=default", "flatness.space=lora", "recovery.use_dora=true"],
            r"flatness\.space=lora: this recovery leaves no LoRA factors",
        ),
    ],
)
def test_what_is_not_there_is_named_with_what_there_is(tmp_path: Path, options: list[str], message: str) -> None:
    write(tmp_path / "items" / "piqa.jsonl", made("piqa"))
    (tmp_path / "few.txt").write_text("Few words.\n\nAnd some more.", "utf-8")
    given = [option.format(items=tmp_path / "items", text=tmp_path / "few.txt") for option in options]
    with pytest.raises(ValueError, match=message):
        bench(tmp_path, *given)
