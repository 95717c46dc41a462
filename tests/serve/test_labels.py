"""Classifiers and taggers behind the server: what they say is what plain transformers says of the same texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

import torch
from encoders import save_encoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Kitchen, ask, post, run, specialist_app
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

TEXTS = ["planes the top until it rings", "a small model", "the violin maker", "numbers 1 2 3 and a longer text"]
CLASSES = {0: "calm", 1: "cheerful", 2: "sad"}
TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}


def classifier(folder: Path, **changes: Any) -> Path:
    return save_encoder(folder, "bert", auto="AutoModelForSequenceClassification", **{"id2label": CLASSES, **changes})


@pytest.fixture(scope="module")
def moods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("moods"))


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagger")
    return save_encoder(folder, "bert", auto="AutoModelForTokenClassification", id2label=TAGS)


def scores(folder: Path, *texts: str) -> torch.Tensor:
    network, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    with torch.no_grad():
        return network(**tokenizer(*texts, return_tensors="pt")).logits[0]


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
def test_classes_with_all_their_probabilities(path: str, moods: Path) -> None:
    found = post(specialist_app(moods), path, input=TEXTS).json
    assert set(found) == {"id", "object", "created", "model", "data", "usage"} and found["object"] == "list"
    for number, (text, row) in enumerate(zip(TEXTS, found["data"], strict=True)):
        expected = scores(moods, text).softmax(0)
        assert row["probs"] == pytest.approx(expected.tolist(), abs=1e-5)
        best = CLASSES[int(expected.argmax())]
        assert (row["index"], row["label"], row["num_classes"]) == (number, best, 3)
    one = post(specialist_app(moods), path, input=TEXTS[0]).json
    # Written with six digits, of which rounding in another batch may move the last.
    assert one["data"][0]["label"] == found["data"][0]["label"]
    assert one["data"][0]["probs"] == pytest.approx(found["data"][0]["probs"], abs=2e-6)
    tokenizer = AutoTokenizer.from_pretrained(moods)
    assert found["usage"]["prompt_tokens"] == sum(len(tokenizer(text)["input_ids"]) for text in TEXTS)
    many = post(specialist_app(moods), path, input=TEXTS * 20).json  # more than one piece
    for row, again in zip(found["data"] * 20, many["data"], strict=True):
        assert again["probs"] == pytest.approx(row["probs"], abs=2e-6)


def test_two_texts_are_classified_together(moods: Path) -> None:
    pair = {"text": TEXTS[0], "text_pair": TEXTS[3]}
    found = post(specialist_app(moods), "/classify", input=[pair, TEXTS[1]]).json["data"]
    assert found[0]["probs"] == pytest.approx(scores(moods, TEXTS[0], TEXTS[3]).softmax(0).tolist(), abs=1e-5)
    assert found[1]["probs"] == pytest.approx(scores(moods, TEXTS[1]).softmax(0).tolist(), abs=1e-5)


def test_several_classes_and_numbers(tmp_path: Path) -> None:
    several = classifier(tmp_path, problem_type="multi_label_classification")
    row = post(specialist_app(several), "/classify", input=TEXTS[0]).json["data"][0]
    expected = scores(several, TEXTS[0]).sigmoid()
    assert row["probs"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert row["labels"] == [CLASSES[n] for n in range(3) if expected[n] > 0.5]
    (tmp_path / "number").mkdir()
    number = classifier(tmp_path / "number", id2label={0: "stars"}, problem_type="regression")
    row = post(specialist_app(number), "/classify", input=TEXTS[0]).json["data"][0]
    assert row["value"] == pytest.approx(float(scores(number, TEXTS[0])[0]), abs=1e-5)
    assert (row["label"], row["num_classes"]) == (None, 1)


def test_tags_of_texts_and_of_words(tagger: Path) -> None:
    app = specialist_app(tagger)
    text = "the violin maker planes the top"
    found = post(app, "/v1/tag", input=[text, text.split()]).json
    first, second = found["data"]
    assert first["tokens"] == second["tokens"] == text.split() and first["tags"] == second["tags"]
    network, tokenizer = AutoModelForTokenClassification.from_pretrained(tagger), AutoTokenizer.from_pretrained(tagger)
    read = tokenizer(text.split(), is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        chances = network(**read).logits[0].softmax(1)
    starts = [read.word_ids().index(word) for word in range(6)]
    assert first["tags"] == [TAGS[n] for n in chances[starts].argmax(1).tolist()]
    for span in first["spans"]:
        assert text[span["start"] : span["end"]] == span["text"]
    assert len(first["spans"]) == len(first["entities"]) and "spans" not in second
    rows = post(app, "/pooling", input=text, task="token_classify").json["data"]
    plain = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        expected = network(**plain).logits[0].softmax(1)
    assert torch.allclose(torch.tensor(rows[0]["data"]), expected, atol=1e-5)


def test_what_they_cannot_is_said(moods: Path, tagger: Path, tiny_model_dir: Any) -> None:
    talking = Kitchen(tiny_model_dir("qwen2")).app()
    for app, path, word in (
        (specialist_app(moods), "/v1/tag", "ask /classify"),
        (specialist_app(moods), "/v1/embeddings", "ask /classify"),
        (specialist_app(tagger), "/classify", "ask /v1/tag and /pooling"),
        (talking, "/classify", "was not trained to classify"),
        (talking, "/v1/tag", "was not trained to tag"),
    ):
        reply = post(app, path, input="?")
        assert reply.status == 400 and word in reply.error["message"], reply.body
    assert "give input or messages" in post(specialist_app(moods), "/classify").error["message"]
    assert post(specialist_app(tagger), "/v1/tag", input=[[]]).status == 400
    unknown = run(lambda: ask(specialist_app(moods), "POST", "/classify", {"model": "gpt-9", "input": "?"}))
    assert unknown.status == 404


PATHS = ["/classify", "/v1/tag", "/pooling"]
VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=6)
    | st.sampled_from(["\ud800", "\x00", " ", "[MASK]"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "text_pair", "role", "content"]), inner, max_size=2)
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    path=st.sampled_from(["/classify", "/v1/tag", "/pooling"]), key=st.sampled_from(["input", "messages"]), value=VALUE
)
def test_no_request_is_the_servers_fault(path: str, key: str, value: Any, apps: dict[str, Any]) -> None:
    body = json.dumps({"model": "tiny", key: value}).encode("utf-8", "surrogatepass")
    reply = run(lambda: ask(apps[path], "POST", path, body))
    assert reply.status == 200 or (400 <= reply.status < 500 and reply.error["code"]), reply.body


@pytest.fixture(scope="module")
def apps(moods: Path, tagger: Path) -> dict[str, Any]:
    tags = specialist_app(tagger)
    return {"/classify": specialist_app(moods), "/v1/tag": tags, "/pooling": tags}
