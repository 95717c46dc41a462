"""The routes of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from starlette.responses import Response

from luthier.serve import answering, asking, labelling, vectors
from luthier.serve.answering import Frame
from luthier.serve.events import Json
from luthier.serve.failures import Refusal, not_found
from luthier.serve.house import House
from luthier.serve.told import tell_errors
from luthier.serve.voices import Voices
from luthier.serve.wire import (
    AdapterRequest,
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
    TagRequest,
    TokenizeRequest,
    Wire,
    read,
)

Handler = Callable[[HttpRequest], Awaitable[Response]]
W = TypeVar("W", bound=Wire)
M = TypeVar("M")


def routes(house: House) -> FastAPI:
    """The application, without what stands before it (`fence.Fence`)."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    tell_errors(app)
    for path, handler in {**_answers(house), **_readings(house), **_words(house)}.items():
        app.add_api_route(path, handler, methods=["POST"], response_model=None)
    for path, handler in _state(house).items():
        app.add_api_route(path, handler, methods=["GET"], response_model=None)

    async def load(request: HttpRequest) -> Response:
        body = read(AdapterRequest, await request.body())
        await house.voices.load(body.name)
        return Json({"name": body.name, "loaded": True})

    async def unload(name: str) -> Response:
        await house.voices.unload(name)
        return Json({"name": name, "loaded": False})

    async def model(name: str) -> Response:
        found = next((one for one in house.voices.listed() if one["id"] == name), None)
        if found is None:
            raise not_found(name[:200])
        return Json(found)

    app.add_api_route("/v1/models/{name:path}", model, methods=["GET"], response_model=None)
    app.add_api_route("/v1/adapters", load, methods=["POST"], response_model=None)
    app.add_api_route("/v1/adapters/{name}", unload, methods=["DELETE"], response_model=None)
    return app


def _answers(house: House) -> dict[str, Handler]:
    """What the model writes."""
    voices = house.voices

    async def chat(request: HttpRequest) -> Response:
        body = read(ChatRequest, await request.body())
        house.gate.check(body.n or 1)
        voice, adapter = voices.find(body.model)
        asked = await asyncio.to_thread(
            asking.chat, body, voice, adapter, house.defaults, reasoning=house.config.reasoning
        )
        if body.stream:
            frame = Frame(body.model, "chat.completion.chunk")
            return await house.stream(request, voice, frame, asked, answering.chat_stream, with_usage=body.with_usage)
        return await house.whole(request, voice, Frame(body.model, "chat.completion"), asked, answering.chat_answer)

    async def completion(request: HttpRequest) -> Response:
        body = read(CompletionRequest, await request.body())
        house.gate.check(body.n or 1)
        voice, adapter = voices.find(body.model)
        asked = await asyncio.to_thread(asking.completion, body, voice, adapter, house.defaults)
        frame = Frame(body.model, "text_completion")
        if body.stream:
            return await house.stream(
                request, voice, frame, asked, answering.completion_stream, with_usage=body.with_usage
            )
        return await house.whole(request, voice, frame, asked, answering.completion_answer)

    return {"/v1/chat/completions": chat, "/v1/completions": completion}


def _readings(house: House) -> dict[str, Handler]:
    """What the model makes of texts: vectors, scores, labels."""

    def handler(kind: type[W], work: Callable[[W, Voices, M], Coroutine[Any, Any, Any]], means: M) -> Handler:
        async def handled(request: HttpRequest) -> Response:
            body = read(kind, await request.body())
            return await house.read(request, work(body, house.voices, means))

        return handled

    comparing, labels = house.comparing, house.labelling
    classify = handler(ClassifyRequest, labelling.classify, labels)
    return {
        "/v1/embeddings": handler(EmbeddingRequest, vectors.embeddings, comparing),
        "/v1/rerank": handler(RerankRequest, vectors.rerank, comparing),
        "/v1/score": handler(ScoreRequest, vectors.score, comparing),
        "/classify": classify,
        "/v1/classify": classify,
        "/v1/tag": handler(TagRequest, labelling.tag, labels),
        "/pooling": handler(PoolingRequest, labelling.pooling, labels),
    }


def _words(house: House) -> dict[str, Handler]:
    """Texts as tokens and back."""
    voices = house.voices

    async def tokenize(request: HttpRequest) -> Response:
        body = read(TokenizeRequest, await request.body())
        voice, _ = voices.find(body.model or voices.base)
        if (body.prompt is None) == (body.messages is None):
            raise Refusal(400, "give prompt or messages", "invalid_request", "prompt")
        if body.messages is not None:
            ids = await asyncio.to_thread(asking.chat_prompt, voice, body.messages, body.tools)
        else:
            ids = (await asyncio.to_thread(asking.prompts_of, voice, body.prompt or ""))[0]
        return Json({"tokens": ids, "count": len(ids), "max_model_len": house.engine.max_length})

    async def detokenize(request: HttpRequest) -> Response:
        body = read(DetokenizeRequest, await request.body())
        voice, _ = voices.find(body.model or voices.base)
        ids = asking.prompts_of(voice, body.tokens)[0]
        return Json({"prompt": voice.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)})

    return {"/tokenize": tokenize, "/detokenize": detokenize}


def _state(house: House) -> dict[str, Handler]:
    """What there is, and how it fares."""

    async def models(request: HttpRequest) -> Response:
        return Json({"object": "list", "data": house.voices.listed()})

    async def adapters(request: HttpRequest) -> Response:
        return Json({"object": "list", "data": house.voices.adapters()})

    async def live(request: HttpRequest) -> Response:
        return Json({"status": "alive"})

    async def ready(request: HttpRequest) -> Response:
        why = "the server is stopping" if house.gate.draining else house.engine.trouble()
        return Json({"status": why or "ready"}, status_code=503 if why else 200)

    async def metrics(request: HttpRequest) -> Response:
        return Response(house.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return {
        "/v1/models": models,
        "/v1/adapters": adapters,
        "/health/live": live,
        "/health/ready": ready,
        "/metrics": metrics,
    }
