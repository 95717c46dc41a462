"""Embedders and rerankers behind the server: the scores are the model's own, asked directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

import torch
from encoders import save_encoder
from serving import ask, post, run, specialist_app
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from luthier.model.vectors import files

QUERY = "the violin maker"
TEXTS = ["planes the top until it rings", "a small model", QUERY, "numbers 1 2 3 and a longer text about people"]


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reranker")
    return save_encoder(folder, "bert", auto="AutoModelForSequenceClassification", num_labels=1)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_encoder(tmp_path_factory.mktemp("embedder"), "bert", auto="AutoModel")
    for name, text in files("mean", width=32, max_length=64, prompts={"query": "violin: "}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def chances(folder: Path, pairs: list[tuple[str, str]]) -> list[float]:
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [float(network(**tokenizer(*pair, return_tensors="pt")).logits[0, 0].sigmoid()) for pair in pairs]


def test_a_reranker_scores_each_text_together_with_its_query(reranker: Path) -> None:
    app = specialist_app(reranker)
    expected = chances(reranker, [(QUERY, text) for text in TEXTS])
    found = post(app, "/v1/rerank", query=QUERY, documents=[*TEXTS[:2], {"text": TEXTS[2]}, TEXTS[3]]).json
    assert {row["index"]: row["relevance_score"] for row in found["results"]} == pytest.approx(
        dict(enumerate(expected)), abs=1e-5
    )
    scores = [row["relevance_score"] for row in found["results"]]
    assert scores == sorted(scores, reverse=True)
    assert found["results"][0]["document"]["text"] == TEXTS[found["results"][0]["index"]]
    best = post(app, "/v1/rerank", query=QUERY, documents=TEXTS, top_n=1, return_documents=False).json["results"]
    assert len(best) == 1 and "document" not in best[0] and best[0]["index"] == found["results"][0]["index"]
    one = post(app, "/v1/score", text_1=QUERY, text_2=TEXTS).json
    assert [row["score"] for row in one["data"]] == pytest.approx(expected, abs=1e-5)
    assert one["usage"]["prompt_tokens"] == found["usage"]["prompt_tokens"] > 40
    each = post(app, "/v1/score", text_1=TEXTS, text_2=TEXTS[::-1]).json
    assert [row["score"] for row in each["data"]] == pytest.approx(
        chances(reranker, list(zip(TEXTS, TEXTS[::-1], strict=True))), abs=1e-5
    )
    many = post(app, "/v1/score", text_1=QUERY, text_2=TEXTS * 20).json  # more than one piece
    assert [row["score"] for row in many["data"]] == pytest.approx(expected * 20, abs=1e-5)


def test_an_embedder_pools_as_its_files_say_and_knows_queries(embedder: Path) -> None:
    app = specialist_app(embedder)
    network, tokenizer = AutoModel.from_pretrained(embedder), AutoTokenizer.from_pretrained(embedder)

    def vector(text: str) -> torch.Tensor:
        with torch.no_grad():
            hidden = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return torch.nn.functional.normalize(hidden.mean(0), dim=0)

    found = post(app, "/v1/embeddings", input=TEXTS).json
    rows = torch.tensor([row["embedding"] for row in found["data"]])
    assert torch.allclose(rows, torch.stack([vector(text) for text in TEXTS]), atol=1e-5)
    asked = post(app, "/v1/embeddings", input=QUERY, input_type="query").json["data"][0]["embedding"]
    assert torch.allclose(torch.tensor(asked), vector("violin: " + QUERY), atol=1e-5)
    ranked = post(app, "/v1/rerank", query=QUERY, documents=TEXTS).json["results"]
    expected = {n: float(vector("violin: " + QUERY) @ vector(text)) for n, text in enumerate(TEXTS)}
    assert {row["index"]: row["relevance_score"] for row in ranked} == pytest.approx(expected, abs=1e-5)
    ids = post(app, "/tokenize", prompt=QUERY).json["tokens"]
    assert ids == tokenizer(QUERY)["input_ids"]
    again = post(app, "/v1/embeddings", input=ids).json["data"][0]["embedding"]
    assert torch.allclose(torch.tensor(again), vector(QUERY), atol=1e-5)


def test_what_they_cannot_is_said(reranker: Path, embedder: Path) -> None:
    for folder, word in ((reranker, "scores texts for a query"), (embedder, "makes vectors of texts")):
        app = specialist_app(folder)
        asked: list[tuple[str, dict[str, Any]]] = [
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "?"}]}),
            ("/v1/completions", {"prompt": "?"}),
            ("/classify", {"input": "?"}),
            ("/v1/tag", {"input": "?"}),
            ("/pooling", {"input": "?"}),
            ("/tokenize", {"messages": [{"role": "user", "content": "?"}]}),
        ]
        for path, body in asked:
            reply = post(app, path, **body)
            assert reply.status == 400 and word in reply.error["message"], reply.body
    assert "/v1/rerank" in post(specialist_app(reranker), "/v1/embeddings", input="?").error["message"]
    assert post(specialist_app(embedder), "/v1/rerank", query="?", documents=[]).status == 400
    unknown = {"model": "gpt-9", "query": "?", "documents": ["x"]}
    assert run(lambda: ask(specialist_app(reranker), "POST", "/v1/rerank", unknown)).status == 404
