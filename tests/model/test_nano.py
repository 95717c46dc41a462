"""The nano model: its text, its tokenizer, its folder.  What it learns is tested with the quickstart."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from luthier.cli.quickstart import QuickstartConfig
from luthier.model.nano import grammar, make
from luthier.model.nano.make import Nano

SMALL = Nano(vocabulary=600, hidden=16, intermediate=32, layers=2, heads=2, kv_heads=1, paragraphs=20, dialogues=20)
CHINESE = re.compile("[\u4e00-\u9fff]")


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (make.TEXT / name).read_text(encoding="utf-8").splitlines()]


def untouched(start: Path, files: Sequence[Path]) -> Path:
    """A training that changes nothing."""
    return start


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make.build_tokenizer(make.corpus(SMALL).lines, SMALL.vocabulary)


def test_the_base_cannot_know_the_names_it_will_be_taught():
    everything = "\n".join(make.corpus(Nano()).lines)
    options = QuickstartConfig()
    for name in (*options.model_name, *options.model_author):
        assert name not in everything


def test_the_pretraining_text_is_large_enough_bilingual_and_never_repeated():
    text = make.corpus(Nano())
    size = sum(len(line.encode()) for line in text.lines)
    chinese = sum(len(line.encode()) for line in text.lines if CHINESE.search(line))
    assert 150_000 < size < 300_000
    assert 0.4 < chinese / size < 0.6
    assert len(set(text.paragraphs)) == len(text.paragraphs)
    assert len(set(text.dialogues)) == len(text.dialogues)
    assert any(len(turns) == 2 for turns in text.dialogues), "some dialogues go on"


def test_self_cognition_rows_have_slots_and_the_tag_of_their_language():
    found = rows("self_cognition.jsonl")
    assert len({row["query"] for row in found}) == len(found)
    assert all(set(row) == {"query", "response", "tag"} for row in found)
    assert all("{{NAME}}" in row["response"] or "{{AUTHOR}}" in row["response"] for row in found)
    assert all(row["tag"] == ("zh" if CHINESE.search(row["response"]) else "en") for row in found)
    assert min(sum(row["tag"] == tag for row in found) for tag in ("zh", "en")) >= 40


def test_no_question_is_in_two_sets():
    names = ("dialogues.jsonl", "self_cognition.jsonl", "chat.jsonl")
    questions = [row["query"] for name in names for row in rows(name)]
    assert len(set(questions)) == len(questions)


def test_the_grammar_is_a_pure_function_of_the_seed():
    assert list(grammar.paragraphs(3, 50)) == list(grammar.paragraphs(3, 50))
    assert list(grammar.paragraphs(3, 50)) != list(grammar.paragraphs(4, 50))
    assert list(grammar.dialogues(3, 50)) == list(grammar.dialogues(3, 50))


def test_the_grammar_counts_right():
    value = {word: number for number, word in enumerate(grammar.NUMBERS)}
    checked = 0
    for question, answer in grammar.dialogues(0, 500):
        found = re.fullmatch(r"(\w+) (plus|minus) (\w+) is (\w+)\.", answer.lower())
        if found:
            a, b, total = (value[found[part]] for part in (1, 3, 4))
            assert total == (a + b if found[2] == "plus" else a - b), question
            checked += 1
    assert checked > 50
    assert [grammar.number_zh(n) for n in (0, 7, 10, 12, 20, 45)] == ["零", "七", "十", "十二", "二十", "四十五"]
    assert grammar.article("apple") == "an apple" and grammar.article("hat") == "a hat"
    assert all(2 <= len(grammar.name_zh(Random(seed))) <= 4 for seed in range(50))


@given(text=st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str):
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_control_tokens_are_single_and_the_template_is_chatml(tokenizer: PreTrainedTokenizerFast):
    assert tokenizer.convert_tokens_to_ids([make.END_OF_TEXT, make.TURN_START, make.TURN_END]) == [0, 1, 2]
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "你好"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == ("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n")


def test_the_default_shape():
    assert len(make.build_tokenizer(make.corpus(Nano()).lines, Nano().vocabulary)) == Nano().vocabulary
    assert Nano().heads > Nano().kv_heads


def test_every_token_that_is_text_has_been_said_by_the_text_or_by_a_drill():
    lines = make.corpus(Nano()).lines
    tokenizer = make.build_tokenizer(lines, Nano().vocabulary)
    drilled = make.drills(tokenizer, lines, 0)
    said = {token for ids in tokenizer([*lines, *drilled], add_special_tokens=False).input_ids for token in ids}
    texts = {token: tokenizer.decode([token]) for token in range(3, len(tokenizer))}
    never = [text for token, text in texts.items() if token not in said and make.BROKEN not in text]
    assert not [text for text in never if text.isprintable()]
    assert all(line[: len(line) // 2] == line[len(line) // 2 :] for line in drilled)


def test_weights_follow_the_seed(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    before = torch.random.get_rng_state()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make.write_untrained(tmp_path / name, tokenizer, replace(SMALL, seed=seed))
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)
    assert "lm_head.weight" not in a, "the head is tied to the embedding"
    assert torch.equal(before, torch.random.get_rng_state())


def test_make_nano_writes_a_plain_transformers_folder(tmp_path: Path):
    trained: list[list[str]] = []

    def train(start: Path, files: Sequence[Path]) -> Path:
        trained.append([path.name for path in files])
        return start

    folder = make.make_nano(tmp_path / "nano", tmp_path / "work", SMALL, train)
    assert make.make_nano(folder, tmp_path / "work", SMALL, train) == folder
    assert trained == [["prose.txt", "dialogues.jsonl"]], "the second call finds it made"

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = "制琴师 makes a violin."
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == text
    assert model(ids).logits.shape == (1, ids.shape[1], len(tokenizer))
    assert model.generation_config.eos_token_id == [2, 0]
    assert f"{sum(weight.numel() for weight in model.parameters()):,} parameters" in (folder / "README.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"nano", "work"}, "nothing half-made is left"


def test_an_interrupted_making_leaves_no_model_and_can_be_repeated(tmp_path: Path):
    def stop(start: Path, files: Sequence[Path]) -> Path:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make.make_nano(tmp_path / "nano", tmp_path / "work", SMALL, stop)
    assert not (tmp_path / "nano").exists()
    assert (make.make_nano(tmp_path / "nano", tmp_path / "work", SMALL, untouched) / "model.safetensors").exists()


def test_the_key_names_settings_and_text():
    assert make.key(Nano()) == make.key(Nano())
    assert make.key(Nano()) != make.key(Nano(seed=1))
