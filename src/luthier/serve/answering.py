"""From pieces of the engine to what OpenAI's clients read, whole or as a stream."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from luthier.generate.request import Piece, Request, Score
from luthier.serve.asking import Asked
from luthier.serve.engines import Engine
from luthier.serve.failures import Refusal
from luthier.serve.held import Held, told_calls
from luthier.serve.spelling import Spelling

Numbered = tuple[int, Piece]

_LEAST = -9999.0
"""JSON has no minus infinity."""


@dataclass
class Told:
    """What has been said in one choice so far."""

    text: list[str] = field(default_factory=list[str])
    scores: list[Score] = field(default_factory=list[Score])
    tokens: int = 0
    cached: int = 0
    reason: str | None = None

    def add(self, piece: Piece) -> None:
        self.text.append(piece.text)
        self.scores += piece.scores
        self.tokens += len(piece.ids)
        self.cached += piece.cached
        self.reason = piece.finish_reason


@dataclass(frozen=True)
class Frame:
    """What is the same in all parts of one response."""

    model: str
    kind: str
    """object of a whole answer; parts of a stream of chats are chunks"""
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def around(self, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        start = "chatcmpl" if self.kind.startswith("chat") else "cmpl"
        head = {"id": f"{start}-{self.id}", "object": self.kind, "created": self.created, "model": self.model}
        return {**head, "choices": list(choices), **more}


async def pieces_of(engine: Engine, requests: Sequence[Request]) -> AsyncGenerator[Numbered]:
    """The pieces of several answers as they come, each with the number of its request.  Raises as `Engine.stream`."""
    if len(requests) == 1:
        async with aclosing(_closable(engine, requests[0])) as stream:
            async for piece in stream:
                yield 0, piece
        return
    queue: asyncio.Queue[Numbered | BaseException] = asyncio.Queue()

    async def follow(number: int, request: Request) -> None:
        try:
            async with aclosing(_closable(engine, request)) as stream:
                async for piece in stream:
                    queue.put_nowait((number, piece))
        except Exception as error:  # raised again where the pieces are read
            queue.put_nowait(error)

    tasks = [asyncio.create_task(follow(number, request)) for number, request in enumerate(requests)]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            left -= item[1].finish_reason is not None
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def asked_pieces(engine: Engine, asked: Asked) -> AsyncGenerator[Numbered]:
    """The pieces of all answers, each behind its prompt where that is told too.

    Raises:
        Refusal: 400 where the engine does not tell how likely prompts are.
        DataError, EngineFailed: as `Engine.stream`.
    """
    known: dict[tuple[int, ...], tuple[Score, ...]] = {}
    for request in asked.requests if asked.echo else ():
        if request.logprobs is not None and request.prompt not in known:
            try:
                known[request.prompt] = await engine.weigh(request.prompt, request.logprobs, request.adapter)
            except NotImplementedError as error:
                why = "this engine does not tell how likely prompts are (echo with logprobs)"
                raise Refusal(400, why, "not_supported", "echo") from error
    reason = "length" if asked.silent else None
    prompts = [
        (number, Piece(echo.text, scores=known.get(request.prompt, ()), finish_reason=reason))
        for number, (request, echo) in enumerate(zip(asked.requests, asked.echo, strict=False))
    ]
    if not asked.silent:
        async with aclosing(pieces_of(engine, asked.requests)) as pieces:
            first = await anext(pieces)  # what is wrong with a request shows here, before anything is told
            for item in (*prompts, first):
                yield item
            async for item in pieces:
                yield item
        return
    for item in prompts:
        yield item


def _closable(engine: Engine, request: Request) -> Any:
    return engine.stream(request)


async def whole(pieces: AsyncIterator[Numbered], count: int) -> list[Told]:
    """All answers, when they have ended."""
    told = [Told() for _ in range(count)]
    async for number, piece in pieces:
        told[number].add(piece)
    return told


def usage(asked: Asked, told: Sequence[Told]) -> dict[str, Any]:
    """Tokens that were read and written; a prompt of several choices counts once."""
    prompt = sum(len(prompt) for prompt in dict.fromkeys(request.prompt for request in asked.requests))
    answers = sum(one.tokens for one in told)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answers,
        "total_tokens": prompt + answers,
        "prompt_tokens_details": {"cached_tokens": min(prompt, sum(one.cached for one in told))},
    }


def chat_answer(frame: Frame, asked: Asked, told: Sequence[Told], spelling: Spelling) -> dict[str, Any]:
    """A whole chat completion."""
    choices: list[dict[str, Any]] = []
    for number, one in enumerate(told):
        thought, answer = Held(asked).divide("".join(one.text), last=True)
        text, calls = told_calls(answer, asked.calls)
        message: dict[str, Any] = {"role": "assistant", "content": text or None if calls else text, "refusal": None}
        if thought:
            message["reasoning_content"] = thought
        if calls:
            message["tool_calls"] = calls
        reason = "tool_calls" if calls and one.reason == "stop" else one.reason
        choices.append({"index": number, "message": message, **_chat_logprobs(one.scores, asked, spelling), "finish_reason": reason})  # noqa: E501  # fmt: skip
    return frame.around(choices, usage=usage(asked, told))


async def chat_stream(
    frame: Frame, asked: Asked, pieces: AsyncIterator[Numbered], spelling: Spelling, told: Sequence[Told]
) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a streamed chat completion; `told` is filled on the way."""
    for number in range(len(told)):
        first = {"role": "assistant", "content": "", "refusal": None}
        yield frame.around([{"index": number, "delta": first, "logprobs": None, "finish_reason": None}])
    held = [Held(asked) for _ in told]
    async for number, piece in pieces:
        told[number].add(piece)
        thought, text, calls = held[number].take(piece)
        delta: dict[str, Any] = {"reasoning_content": thought} if thought else {}
        if text:
            delta["content"] = text
        if calls:
            delta["tool_calls"] = [{"index": n, **call} for n, call in enumerate(calls)]
        reason = "tool_calls" if calls and piece.finish_reason == "stop" else piece.finish_reason
        if delta or reason or piece.scores:
            scores = _chat_logprobs(piece.scores, asked, spelling)
            yield frame.around([{"index": number, "delta": delta, **scores, "finish_reason": reason}])


def completion_answer(frame: Frame, asked: Asked, told: Sequence[Told], spelling: Spelling) -> dict[str, Any]:
    """A whole text completion."""
    choices = [
        {
            "index": number,
            "text": "".join(one.text),
            "logprobs": _logprobs(one.scores, asked, number, spelling, 0, first=True),
            "finish_reason": one.reason,
        }
        for number, one in enumerate(told)
    ]
    return frame.around(choices, usage=usage(asked, told))


async def completion_stream(
    frame: Frame, asked: Asked, pieces: AsyncIterator[Numbered], spelling: Spelling, told: Sequence[Told]
) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a streamed text completion; `told` is filled on the way."""
    async for number, piece in pieces:
        offset, first = sum(map(len, told[number].text)) if piece.scores else 0, not told[number].text
        told[number].add(piece)
        if piece.text or piece.scores or piece.finish_reason:
            scores = _logprobs(piece.scores, asked, number, spelling, offset, first=first)
            choice = {"index": number, "text": piece.text, "logprobs": scores, "finish_reason": piece.finish_reason}
            yield frame.around([choice])


def _chat_logprobs(scores: Sequence[Score], asked: Asked, spelling: Spelling) -> dict[str, Any]:
    if asked.requests[0].logprobs is None:
        return {"logprobs": None}
    content: list[dict[str, Any]] = []
    for score in scores:
        likeliest = [spelling.entry(token, logprob) for token, logprob in score.likeliest]
        content.append({**spelling.entry(score.token, score.logprob), "top_logprobs": likeliest})
    return {"logprobs": {"content": content, "refusal": None}}


def _logprobs(
    scores: Sequence[Score], asked: Asked, number: int, spelling: Spelling, offset: int, *, first: bool
) -> dict[str, Any] | None:
    """The scores of a choice, or of the part of it that begins at `offset`; of the first part, with its prompt."""
    request = asked.requests[number]
    if request.logprobs is None:
        return None
    offsets: list[int] = []
    if asked.echo and first:
        offsets, offset = list(asked.echo[number].places), len(asked.echo[number].text)
    _, places = spelling.read([score.token for score in scores[len(offsets) :]], marks=False)
    offsets += [offset + place for place in places]
    top = [_likeliest(score, spelling) or None for score in scores]
    return {
        "tokens": [spelling.of(score.token)[0] for score in scores],
        "token_logprobs": [None if math.isnan(one.logprob) else max(one.logprob, _LEAST) for one in scores],
        "top_logprobs": top if request.logprobs else None,
        "text_offset": offsets,
    }


def _likeliest(score: Score, spelling: Spelling) -> dict[str, float]:
    """The likeliest tokens by their text; of several that look alike, as parts of characters do, the likeliest."""
    found: dict[str, float] = {}
    for token, logprob in score.likeliest:
        found.setdefault(spelling.of(token)[0], max(logprob, _LEAST))
    return found
