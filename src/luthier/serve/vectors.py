"""Embeddings, and likeness of texts by their embeddings: scores and re-ranking.

A causal language model that was not trained for it embeds badly; one trained by `luthier` for similarity does well.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from luthier.serve.asking import prompts_of
from luthier.serve.engines import Engine
from luthier.serve.failures import Refusal
from luthier.serve.voices import Voices
from luthier.serve.wire import EmbeddingRequest, RerankRequest, ScoreRequest


async def embeddings(body: EmbeddingRequest, voices: Voices, engine: Engine) -> dict[str, Any]:
    """The answer to /v1/embeddings.  With `dimensions` vectors are cut and made of length 1 again."""
    vectors, tokens = await _embedded(body.model, body.input, voices, engine)
    if body.dimensions is not None:
        if body.dimensions > vectors.shape[1]:
            message = f"the model's vectors have {vectors.shape[1]} dimensions"
            raise Refusal(400, message, "invalid_request", "dimensions")
        vectors = vectors[:, : body.dimensions]
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    encoded = body.encoding_format == "base64"
    data = [
        {
            "object": "embedding",
            "index": number,
            "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoded else vector.tolist(),
        }
        for number, vector in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": body.model, "usage": _usage(tokens)}


async def rerank(body: RerankRequest, voices: Voices, engine: Engine) -> dict[str, Any]:
    """The answer to /v1/rerank: documents by the cosine of their vector and the query's, the most alike first."""
    documents = [document if isinstance(document, str) else document["text"] for document in body.documents]
    vectors, tokens = await _embedded(body.model, [body.query, *documents], voices, engine)
    scores = vectors[1:] @ vectors[0]
    order = np.argsort(-scores, kind="stable")[: body.top_n]
    results: list[dict[str, Any]] = []
    for index in order.tolist():
        result = {"index": index, "relevance_score": float(scores[index])}
        results.append(
            result | ({"document": {"text": documents[index]}} if body.return_documents is not False else {})
        )
    return {"model": body.model, "results": results, "usage": _usage(tokens)}


async def score(body: ScoreRequest, voices: Voices, engine: Engine) -> dict[str, Any]:
    """The answer to /v1/score: the cosine of each pair; one text on the left stands for all."""
    left = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    right = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    if len(left) not in (1, len(right)):
        raise Refusal(400, "text_1 has one text, or as many as text_2", "invalid_request", "text_1")
    vectors, tokens = await _embedded(body.model, [*left, *right], voices, engine)
    cosines = (vectors[: len(left)] * vectors[len(left) :]).sum(axis=1)
    data = [{"object": "score", "index": n, "score": float(cosine)} for n, cosine in enumerate(cosines)]
    return {"object": "list", "data": data, "model": body.model, "usage": _usage(tokens)}


async def _embedded(
    model: str, texts: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]], voices: Voices, engine: Engine
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], int]:
    voice, adapter = voices.find(model)
    prompts = prompts_of(voice, texts)
    try:
        vectors = await engine.embed(prompts, adapter)
    except NotImplementedError as error:
        raise Refusal(400, f"this engine does not embed: {error}", "not_supported", "model") from error
    return np.array(vectors, dtype=np.float32), sum(map(len, prompts))


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}
