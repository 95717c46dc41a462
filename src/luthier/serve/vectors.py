"""Vectors of texts, and how well texts answer a query: by a model that scores pairs, or by the nearness of vectors.

A causal language model that was not trained for it embeds badly; one trained by `luthier` for similarity does well.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from luthier.serve.asking import prompts_of
from luthier.serve.engines import Engine
from luthier.serve.failures import Refusal
from luthier.serve.voices import Voices
from luthier.serve.wire import EmbeddingRequest, RerankRequest, ScoreRequest

Texts = Sequence[str] | Sequence[tuple[int, ...]]
Kind = Literal["query", "document"] | None
"""What a text is, for models that were trained with something in front of either."""


class Comparing(Protocol):
    """What makes vectors and scores."""

    async def vectors(self, model: str, texts: Texts, kind: Kind) -> tuple[NDArray[np.float32], int]:
        """One vector of length 1 for each text, and the tokens that were read.  Raises Refusal."""
        ...

    async def likeness(self, model: str, pairs: Sequence[tuple[str, str]]) -> tuple[NDArray[np.float64], int]:
        """How well each text answers its query, greater is better, and the tokens that were read.  Raises Refusal."""
        ...


class ByHiddenStates:
    """Vectors by the engine that also talks; texts are alike as their vectors are."""

    def __init__(self, engine: Engine, voices: Voices):
        self._engine, self._voices = engine, voices

    async def vectors(self, model: str, texts: Texts, kind: Kind) -> tuple[NDArray[np.float32], int]:
        """See Comparing."""
        voice, adapter = self._voices.find(model)
        prompts = prompts_of(voice, texts)
        try:
            vectors = await self._engine.embed(prompts, adapter)
        except NotImplementedError as error:
            raise Refusal(400, f"this engine does not embed: {error}", "not_supported", "model") from error
        return np.array(vectors, dtype=np.float32), sum(map(len, prompts))

    async def likeness(self, model: str, pairs: Sequence[tuple[str, str]]) -> tuple[NDArray[np.float64], int]:
        """The cosine of both vectors; each text is read once."""
        place = {text: number for number, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
        vectors, tokens = await self.vectors(model, list(place), None)
        left, right = (vectors[[place[pair[side]] for pair in pairs]].astype(np.float64) for side in (0, 1))
        return (left * right).sum(axis=1), tokens


async def embeddings(body: EmbeddingRequest, voices: Voices, comparing: Comparing) -> dict[str, Any]:
    """The answer to /v1/embeddings.  With `dimensions` vectors are cut and made of length 1 again."""
    voice, _ = voices.find(body.model)
    given = body.input
    texts: Texts
    if isinstance(given, str):
        texts = [given]
    elif all(isinstance(one, str) for one in given):
        texts = [one for one in given if isinstance(one, str)]
    else:
        texts = prompts_of(voice, given)
    vectors, tokens = await comparing.vectors(body.model, texts, body.input_type)
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


async def rerank(body: RerankRequest, voices: Voices, comparing: Comparing) -> dict[str, Any]:
    """The answer to /v1/rerank: the documents that answer the query best come first."""
    voices.find(body.model)
    documents = [document if isinstance(document, str) else document["text"] for document in body.documents]
    scores, tokens = await comparing.likeness(body.model, [(body.query, document) for document in documents])
    order = np.argsort(-scores, kind="stable")[: body.top_n]
    results: list[dict[str, Any]] = []
    for index in order.tolist():
        result = {"index": index, "relevance_score": float(scores[index])}
        results.append(
            result | ({"document": {"text": documents[index]}} if body.return_documents is not False else {})
        )
    return {"model": body.model, "results": results, "usage": _usage(tokens)}


async def score(body: ScoreRequest, voices: Voices, comparing: Comparing) -> dict[str, Any]:
    """The answer to /v1/score: how well each text on the right answers that on the left; one there stands for all."""
    voices.find(body.model)
    left = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    right = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    if len(left) not in (1, len(right)):
        raise Refusal(400, "text_1 has one text, or as many as text_2", "invalid_request", "text_1")
    left = left * len(right) if len(left) == 1 else left
    scores, tokens = await comparing.likeness(body.model, list(zip(left, right, strict=True)))
    data = [{"object": "score", "index": n, "score": float(one)} for n, one in enumerate(scores)]
    return {"object": "list", "data": data, "model": body.model, "usage": _usage(tokens)}


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}
