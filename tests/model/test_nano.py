"""The bundled model: its folder, its tokenizer, its card and the text around it.  What it learns is tested with the
quickstart."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from luthier.base.errors import ModelError
from luthier.cli.quickstart import QuickstartConfig
from luthier.data.render import Renderer
from luthier.evaluate.likelihood import likelihood
from luthier.model import nano
from luthier.model.config import ModelConfig
from luthier.model.folder import local_folder, model_folder
from luthier.model.load import load_model, load_tokenizer

CHINESE = re.compile("[\u4e00-\u9fff]")
NANO = ModelConfig(path=nano.NAME, dtype="float32")
RECIPE = Path(__file__).parents[2] / "recipes" / "nano" / "text"

ENGLISH = "The old woman opened the door and looked at the boy, who was standing in the rain with his dog."
MANDARIN = "春天来了，草地绿了，孩子们在公园里放风筝，老人坐在树下聊天。"


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer(NANO)


def test_the_folder_is_whole_small_and_opens_in_plain_transformers():
    folder = nano.nano_folder()
    files = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "LICENSE"} <= files
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 16_000_000
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    count = sum(weight.numel() for weight in model.parameters())
    assert 1_000_000 < count <= 8_000_000
    assert model.config.num_attention_heads > model.config.num_key_value_heads
    assert f"{count:,} parameters" in (folder / "README.md").read_text(encoding="utf-8")
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        names = list(weights.keys())
    assert "lm_head.weight" not in names, "the head is tied to the embedding"


def test_the_card_tells_licence_sources_and_numbers():
    card = (nano.nano_folder() / "README.md").read_text(encoding="utf-8")
    for said in ("cc-by-sa-4.0", "bits per byte", "held_en", "held_zh", "Apache-2.0", "CC BY-SA", "never score"):
        assert said.lower() in card.lower(), said
    assert "{" not in card, "every blank of the card is filled in"


def test_its_name_stands_for_it_unless_a_folder_has_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert model_folder(NANO) == nano.nano_folder()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    assert local_folder("nano") == Path("nano")
    (tmp_path / "nano").rmdir()
    (tmp_path / "nano").touch()
    with pytest.raises(ModelError, match="is a file"):
        model_folder(NANO)


@given(text=st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str):
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == unicodedata.normalize("NFC", text)


def test_control_tokens_are_single_and_the_template_is_chatml(tokenizer: PreTrainedTokenizerFast):
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids(names) == [0, 1, 2]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "你好"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    assert Renderer(tokenizer).stop_ids == {2}


def test_it_knows_both_languages(tokenizer: PreTrainedTokenizerFast):
    """Far below what random weights cost (about log2 of the vocabulary a token), and word order matters to it."""
    model = load_model(NANO, torch.device("cpu"), tokenizer=tokenizer, trained=False)
    renderer = Renderer(tokenizer)
    shuffled = " ".join(sorted(ENGLISH.split())), "".join(sorted(MANDARIN))
    for text, mixed in zip((ENGLISH, MANDARIN), shuffled, strict=True):
        told = likelihood(model, renderer, [text])
        assert told.bits / told.tokens < 8.5, told
        assert likelihood(model, renderer, [mixed]).bits > 1.2 * told.bits


def test_the_base_cannot_know_the_names_it_will_be_taught():
    options = QuickstartConfig()
    ours = "\n".join(path.read_text(encoding="utf-8") for path in RECIPE.iterdir())
    for name in (*options.model_name, *options.model_author):
        assert name not in ours.replace("Written for Luthier", "")


def test_self_cognition_rows_have_slots_and_the_tag_of_their_language():
    found = rows(nano.TEXT, "self_cognition.jsonl")
    assert len({row["query"] for row in found}) == len(found)
    assert all(set(row) == {"query", "response", "tag"} for row in found)
    assert all("{{NAME}}" in row["response"] or "{{AUTHOR}}" in row["response"] for row in found)
    assert all(row["tag"] == ("zh" if CHINESE.search(row["response"]) else "en") for row in found)
    assert min(sum(row["tag"] == tag for row in found) for tag in ("zh", "en")) >= 40


def test_no_question_is_in_two_sets():
    ours = rows(RECIPE, "dialogues.jsonl")
    bundled = [row for name in ("self_cognition.jsonl", "chat.jsonl") for row in rows(nano.TEXT, name)]
    questions = [row["query"] for row in (*ours, *bundled)]
    assert len(set(questions)) == len(questions)


def test_settings_of_generation_end_an_answer():
    settings = json.loads((nano.nano_folder() / "generation_config.json").read_text(encoding="utf-8"))
    assert settings["eos_token_id"] == [2, 0] and settings["pad_token_id"] == 0
    assert AutoTokenizer.from_pretrained(nano.nano_folder()).model_max_length == 1024
