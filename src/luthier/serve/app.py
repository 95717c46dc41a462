"""The routes of the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from starlette.exceptions import HTTPException
from starlette.responses import Response

from luthier.base.errors import LuthierError
from luthier.generate.config import SamplingConfig
from luthier.serve import answering, asking, labelling, vectors
from luthier.serve.answering import Frame, Numbered, Told
from luthier.serve.asking import Asked
from luthier.serve.config import ServerConfig
from luthier.serve.engines import Engine, EngineFailed
from luthier.serve.events import ClientGone, Events, Json, while_connected
from luthier.serve.failures import Refusal, broken, not_found, refused
from luthier.serve.gate import Gate
from luthier.serve.labelling import Labelling
from luthier.serve.metrics import Metrics
from luthier.serve.spelling import Spelling
from luthier.serve.vectors import Comparing
from luthier.serve.voices import Voice, Voices
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
    read,
)

Stream = Callable[[Frame, Asked, AsyncIterator[Numbered], Spelling, list[Told]], AsyncIterator[dict[str, Any]]]
Answer = Callable[[Frame, Asked, list[Told], Spelling], dict[str, Any]]


@dataclass(frozen=True)
class House:
    """What the routes work with."""

    engine: Engine
    voices: Voices
    config: ServerConfig
    defaults: SamplingConfig
    gate: Gate
    metrics: Metrics
    comparing: Comparing
    labelling: Labelling


def routes(house: House) -> FastAPI:
    """The application, without what stands before it (`fence.Fence`)."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, _unknown_route)
    app.add_exception_handler(Exception, _bug)
    for kind, told in ((Refusal, _refusal), (LuthierError, _luthier), (EngineFailed, _failed), (ClientGone, _gone)):
        app.add_exception_handler(kind, told)
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


Handler = Callable[[HttpRequest], Awaitable[Response]]


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
            return await _stream(house, request, voice, frame, asked, answering.chat_stream, body.with_usage)
        return await _whole(house, request, voice, Frame(body.model, "chat.completion"), asked, answering.chat_answer)

    async def completion(request: HttpRequest) -> Response:
        body = read(CompletionRequest, await request.body())
        house.gate.check(body.n or 1)
        voice, adapter = voices.find(body.model)
        asked = await asyncio.to_thread(asking.completion, body, voice, adapter, house.defaults)
        frame = Frame(body.model, "text_completion")
        if body.stream:
            return await _stream(house, request, voice, frame, asked, answering.completion_stream, body.with_usage)
        return await _whole(house, request, voice, frame, asked, answering.completion_answer)

    return {"/v1/chat/completions": chat, "/v1/completions": completion}


def _readings(house: House) -> dict[str, Handler]:
    """What the model makes of texts: vectors, scores, labels."""
    voices, comparing = house.voices, house.comparing

    async def embeddings(request: HttpRequest) -> Response:
        body = read(EmbeddingRequest, await request.body())
        return await _read(house, request, vectors.embeddings(body, voices, comparing))

    async def rerank(request: HttpRequest) -> Response:
        body = read(RerankRequest, await request.body())
        return await _read(house, request, vectors.rerank(body, voices, comparing))

    async def score(request: HttpRequest) -> Response:
        body = read(ScoreRequest, await request.body())
        return await _read(house, request, vectors.score(body, voices, comparing))

    async def classify(request: HttpRequest) -> Response:
        body = read(ClassifyRequest, await request.body())
        return await _read(house, request, labelling.classify(body, voices, house.labelling))

    async def tag(request: HttpRequest) -> Response:
        body = read(TagRequest, await request.body())
        return await _read(house, request, labelling.tag(body, voices, house.labelling))

    async def pooling(request: HttpRequest) -> Response:
        body = read(PoolingRequest, await request.body())
        return await _read(house, request, labelling.pooling(body, voices, house.labelling))

    return {
        "/v1/embeddings": embeddings,
        "/v1/rerank": rerank,
        "/v1/score": score,
        "/classify": classify,
        "/v1/classify": classify,
        "/v1/tag": tag,
        "/pooling": pooling,
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


async def _whole(
    house: House, request: HttpRequest, voice: Voice, frame: Frame, asked: Asked, answer: Answer
) -> Response:
    spelling = Spelling(voice.tokenizer)
    _check_ready(house)
    async with house.gate.entered(len(asked.requests)):
        pieces = _timed(house, answering.asked_pieces(house.engine, asked))
        told = await while_connected(request, answering.whole(pieces, len(asked.requests)))
    _count(house, asked, told)
    return Json(answer(frame, asked, told, spelling))


async def _stream(
    house: House, request: HttpRequest, voice: Voice, frame: Frame, asked: Asked, stream: Stream, with_usage: bool
) -> Response:
    spelling, told = Spelling(voice.tokenizer), [Told() for _ in asked.requests]
    _check_ready(house)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(house.gate.entered(len(asked.requests)))
        pieces = _timed(house, answering.asked_pieces(house.engine, asked))
        stack.push_async_callback(pieces.aclose)
        # What is wrong with the request shows before the first piece, while there can still be another status.
        first = await while_connected(request, _next(pieces))
        assert first is not None, "an answer has a last piece"
        chunks = stream(frame, asked, _after(first, pieces), spelling, told)
        return Events(_encoded(house, frame, asked, chunks, told, with_usage), stack.pop_all())
    raise AssertionError


async def _encoded(
    house: House,
    frame: Frame,
    asked: Asked,
    chunks: AsyncIterator[dict[str, Any]],
    told: list[Told],
    with_usage: bool,
) -> AsyncGenerator[bytes]:
    """The events of a stream: chunks, usage if asked for, and the mark of the end."""
    try:
        async for chunk in chunks:
            yield orjson.dumps(chunk)
    except (Refusal, LuthierError, EngineFailed) as error:
        yield _as_refusal(error).encoded()
        return
    _count(house, asked, told)
    if with_usage:
        yield orjson.dumps(frame.around([], usage=answering.usage(asked, told)))
    yield b"[DONE]"


async def _read(house: House, request: HttpRequest, work: Any) -> Response:
    try:
        _check_ready(house)
        async with house.gate.entered(), asyncio.timeout(house.config.timeout):
            return Json(await while_connected(request, work))
    except TimeoutError as error:
        raise _too_slow(house) from error
    finally:
        work.close()


async def _timed(house: House, pieces: AsyncIterator[Numbered]) -> AsyncGenerator[Numbered]:
    """The same pieces within the deadline, with a look at the clock."""
    began = time.monotonic()
    waiting_for_first = True
    try:
        while True:
            left = house.config.timeout - (time.monotonic() - began)
            # Not wait_for, which in Python 3.11 forgets that it was cancelled when a piece comes at that moment.
            async with asyncio.timeout(left):
                item = await anext(pieces, None)
            if item is None:
                break
            if waiting_for_first:
                house.metrics.first.observe(time.monotonic() - began)
                waiting_for_first = False
            yield item
        house.metrics.seconds.observe(time.monotonic() - began)
    except TimeoutError as error:
        raise _too_slow(house) from error
    finally:
        await pieces.aclose()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


async def _next(pieces: AsyncIterator[Numbered]) -> Numbered | None:
    return await anext(pieces, None)


async def _after(first: Numbered, pieces: AsyncIterator[Numbered]) -> AsyncIterator[Numbered]:
    yield first
    async for item in pieces:
        yield item


def _check_ready(house: House) -> None:
    """Raises Refusal: 503 while the engine cannot take requests."""
    if (why := house.engine.trouble()) is not None:
        raise Refusal(503, why, "not_ready", headers={"Retry-After": "5"})


def _count(house: House, asked: Asked, told: list[Told]) -> None:
    tokens = house.metrics.tokens
    tokens.labels("prompt").inc(sum(len(request.prompt) for request in asked.requests))
    tokens.labels("cached").inc(sum(one.cached for one in told))
    tokens.labels("answer").inc(sum(one.tokens for one in told))


def _too_slow(house: House) -> Refusal:
    return Refusal(408, f"not answered within {house.config.timeout:g} s", "deadline_exceeded")


def _as_refusal(error: Exception) -> Refusal:
    if isinstance(error, Refusal):
        return error
    return refused(error) if isinstance(error, LuthierError) else broken(f"the engine failed: {error}")


async def _refusal(request: HttpRequest, error: Exception) -> Response:
    refusal = _as_refusal(error)
    return Response(refusal.encoded(), refusal.status, dict(refusal.headers), "application/json")


_luthier = _failed = _refusal


async def _bug(request: HttpRequest, error: Exception) -> Response:
    """What nobody foresaw; it is raised again afterwards, and `Fence` logs it."""
    message = f"this is a bug in the server; it is logged as {request.state.request_id}"
    return await _refusal(request, Refusal(500, message, "bug"))


async def _gone(request: HttpRequest, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _unknown_route(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:200]
    if error.status_code == 405:
        what = Refusal(405, f"{request.method} is not possible on {path}", "method_not_allowed")
    elif error.status_code == 404:
        what = Refusal(404, f"there is nothing at {path}", "unknown_route")
    else:
        what = Refusal(error.status_code, str(error.detail), "invalid_request")
    return await _refusal(request, what)
