"""vLLM, SGLang or LMDeploy as an engine: their process is ours, they see token ids, and only our routes are open."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import httpx2
from transformers import PreTrainedTokenizerFast

from luthier.base.errors import ConfigError, DataError, RunError
from luthier.base.secrets import redact
from luthier.generate.request import FinishReason, Piece, Request, Score, room_for
from luthier.generate.sampler import Answer
from luthier.serve.dialects import Heard, dialect
from luthier.serve.engines import EngineFailed, Load
from luthier.serve.launch import Serving
from luthier.serve.process import Process

_OWN = "own"
"""The engine's name for the adapter that a run was opened with."""
_LONG = httpx2.Timeout(10.0, read=None)  # an answer may take its time; deadlines are the server's


class ProxyEngine:
    """An Engine whose work is done by another server.

    Args:
        tokenizer: makes text of the tokens that come back.
        stop_ids: tokens that end an answer.
        own: folder of an adapter that answers where a request names none.
        patience: seconds until the process must be ready.
    """

    def __init__(
        self,
        serving: Serving,
        tokenizer: PreTrainedTokenizerFast,
        stop_ids: Collection[int],
        *,
        own: str | None = None,
        patience: float = 600.0,
        pause: float = 1.0,
    ):
        self.max_length, self.slots = serving.max_length, serving.slots
        self.process = Process(serving, self._load_again, patience, pause)
        self._tokenizer, self._stop_ids = tokenizer, frozenset(stop_ids)
        self._speaks = dialect(serving.peer)
        self._own = _OWN if own else None
        self._adapters: dict[str, str] = {_OWN: str(Path(own).expanduser().resolve())} if own else {}
        self._running = 0
        self._client: httpx2.AsyncClient | None = None

    async def start(self) -> None:
        """Start the process and wait until it is ready; see Engine."""
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=self.slots)
        self._client = httpx2.AsyncClient(timeout=_LONG, limits=limits, trust_env=False)
        await self.process.start()

    async def close(self) -> None:
        """End the process; see Engine."""
        await self.process.close()
        if self._client is not None:
            await self._client.aclose()

    def trouble(self) -> str | None:
        """Why requests cannot be taken just now; see Engine."""
        return self.process.why

    def load(self) -> Load:
        """How busy it is; what waits inside the other server is not known."""
        return Load(min(self._running, self.slots), max(0, self._running - self.slots))

    async def stream(self, request: Request) -> AsyncIterator[Piece]:
        """The answer as it comes; see Engine."""
        most = min(request.sampling.max_new_tokens, room_for(request, self.max_length))
        request = replace(request, adapter=request.adapter or self._own)
        body = self._speaks.body(request, most, self._stop_ids)
        if self.process.why is not None:
            raise EngineFailed(self.process.why)
        answer = Answer(self._tokenizer, self._stop_ids, request.sampling.stop)
        self._running += 1
        try:
            async for heard in self._heard(body):
                piece = _piece(answer, heard, asked=request.logprobs is not None)
                if piece is not None:
                    yield piece
                if answer.finished or heard.ended is not None:
                    return
            raise EngineFailed("the engine left in the middle of an answer")
        finally:
            self._running -= 1

    async def weigh(self, prompt: tuple[int, ...], likeliest: int, adapter: str | None) -> tuple[Score, ...]:
        """Not offered: each of these servers tells it in words of its own."""
        raise NotImplementedError

    async def embed(self, prompts: Sequence[tuple[int, ...]], adapter: str | None) -> list[list[float]]:
        """Not offered: what these servers call an embedding needs a server started for it."""
        raise NotImplementedError

    async def add_adapter(self, name: str, folders: Sequence[str]) -> None:
        """Load an adapter, now and after each restart; see Engine."""
        if self._speaks.loads is None:
            raise ConfigError("this engine takes no adapters", where=name, fix="Merge it: luthier export --merge_lora")
        if len(folders) != 1:
            raise ConfigError(
                "this engine cannot add adapters up", where=name, fix="Merge all but the last into the base"
            )
        self._adapters[name] = str(Path(folders[0]).expanduser().resolve())
        try:
            await self._tell(self._speaks.loads, {"lora_name": name, "lora_path": self._adapters[name]})
        except RunError:
            del self._adapters[name]
            raise

    async def remove_adapter(self, name: str) -> None:
        """Forget an adapter; see Engine."""
        if self._adapters.pop(name, None) is not None and self._speaks.unloads is not None:
            await self._tell(self._speaks.unloads, {"lora_name": name})

    async def _load_again(self) -> None:
        for name, folder in self._adapters.items():
            assert self._speaks.loads is not None
            await self._tell(self._speaks.loads, {"lora_name": name, "lora_path": folder})

    async def _heard(self, body: dict[str, object]) -> AsyncIterator[Heard]:
        """The events of a stream; leaving it closes the connection, which ends the work."""
        assert self._client is not None
        address, headers, seen = f"{self.process.address}{self._speaks.path}", self.process.headers, 0
        try:
            async with self._client.stream("POST", address, json=body, headers=headers) as response:
                if response.status_code != 200:
                    raise _refused(response.status_code, (await response.aread()).decode(errors="replace"))
                async for line in response.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    text = line.removeprefix("data:").strip()
                    if text == "[DONE]":
                        return
                    heard = self._speaks.hear(text.encode(), seen)
                    seen += len(heard.ids)
                    yield heard
        except httpx2.HTTPError as error:
            raise EngineFailed(f"the engine broke off ({type(error).__name__})") from error

    async def _tell(self, route: str, body: dict[str, str]) -> None:
        assert self._client is not None
        try:
            address = f"{self.process.address}{route}"
            response = await self._client.post(address, json=body, headers=self.process.headers, timeout=300.0)
        except httpx2.HTTPError as error:
            raise RunError(f"the engine does not answer ({type(error).__name__})", code="engine_failed") from error
        if response.status_code != 200:
            said = redact(response.text)[:300]
            raise RunError(
                f"the engine does not take this adapter: {said}", where=body["lora_name"], code="bad_adapter"
            )


def _piece(answer: Answer, heard: Heard, *, asked: bool) -> Piece | None:
    """The next part of an answer, made of what was heard; None when there is nothing to tell."""
    text, taken = "", 0
    for token in heard.ids:
        text += answer.feed(token)
        taken += 1
        if answer.finished:
            break
    reason: FinishReason | None = "stop" if answer.finished else None
    if reason is None and heard.ended is not None:
        text += answer.finish()
        reason = "length" if heard.ended == "length" else "stop"
    if not (taken or text or reason):
        return None
    return Piece(text, heard.ids[:taken], heard.scores[:taken] if asked else (), reason)


def _refused(status: int, said: str) -> Exception:
    said = redact(" ".join(said.split()))[:300]
    if status in (400, 422):
        return DataError(f"the engine cannot use this request: {said}", code="bad_request")
    return EngineFailed(f"the engine answers {status}: {said}")
