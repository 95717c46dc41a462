"""Models that talk to the pages: each is served by `luthier deploy` in a process of its own, so that unloading one
gives all its memory back and a page that hangs cannot hold up a model, nor a model a page."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import orjson

from luthier.base.errors import ConfigError, RunError
from luthier.base.records import Json
from luthier.base.rundir import rows_of, run_number
from luthier.base.secrets import redact
from luthier.base.signals import tied
from luthier.studio.children import LUTHIER, error_in

MOST = 4
"""Models that are loaded at a time."""
_PATIENCE = 600.0
"""Seconds until a model must be loaded."""
_GRACE = 20.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn."""

    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 512


class Talk:
    """One model in its process."""

    def __init__(self, named: str, words: Sequence[str], root: Path):
        self.named, self.words = named, tuple(words)
        self._root, self._key = root, secrets.token_urlsafe(24)
        self._process: asyncio.subprocess.Process | None = None
        self._url = self._model = ""
        handle, log = tempfile.mkstemp(prefix="luthier-studio-", suffix=".log")
        os.close(handle)
        self._log = Path(log)

    @property
    def pid(self) -> int | None:
        """Its process, while it lives."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    async def open(self) -> None:
        """Load the model.

        Raises:
            RunError: with what the process said.
        """
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *tied(),
                *LUTHIER,
                *self.words,
                "--port",
                "0",
                "--json",
                cwd=self._root,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "LUTHIER_API_KEY": self._key},
                start_new_session=True,
            )
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        while not self._listens():
            if self._process.returncode is not None or asyncio.get_running_loop().time() > deadline:
                raise RunError(f"the model could not be loaded: {self._said()}", where=self.named, code="not_loaded")
            await asyncio.sleep(0.1)

    async def answer(self, messages: Sequence[Json], sampling: Sampling) -> AsyncGenerator[str]:
        """An answer, piece by piece; leaving the loop early ends the work.

        Raises:
            RunError: what the server refused, or that it is gone.
        """
        body: dict[str, Json] = {
            "model": self._model,
            "messages": list(messages),
            "stream": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
        }
        try:
            async with (
                httpx2.AsyncClient(timeout=None, trust_env=False) as client,
                client.stream("POST", f"{self._url}/chat/completions", json=body, headers=self._headers) as reply,
            ):
                if reply.status_code != 200:
                    raise RunError(_refusal(await reply.aread()), where=self.named, code="refused")
                async for line in reply.aiter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield _piece(line.removeprefix("data: "))
        except httpx2.HTTPError as error:
            raise RunError("the model's process is gone", where=self.named, code="gone") from error

    async def close(self) -> None:
        """Unload the model."""
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _GRACE)
            except TimeoutError:
                process.kill()
                await process.wait()
        self._log.unlink(missing_ok=True)

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"}

    def _listens(self) -> bool:
        """Whether the server has said where it is."""
        for row in rows_of(self._log.read_bytes().splitlines()):
            models = row.get("models")
            if "url" in row and isinstance(models, list):
                self._url, self._model = str(row["url"]), str(models[-1])
                return True
        return False

    def _said(self) -> str:
        said = self._log.read_bytes().decode(errors="replace").strip()
        return error_in(said) or redact(said.rpartition("\n")[2]) or "it ended without a word"


class Talks:
    """The models that are loaded, by the names that they were asked for."""

    def __init__(self, root: Path):
        self._root = root
        self._talks: dict[str, Talk] = {}
        self._busy = asyncio.Lock()

    @property
    def loaded(self) -> list[Talk]:
        """Models whose process lives."""
        return [talk for talk in self._talks.values() if talk.pid is not None]

    async def open(self, named: str, place: Path | None) -> Talk:
        """The model of this name, loaded if it is not.

        Args:
            place: where it lies, when it is no name of a hub.

        Raises:
            ConfigError: too many are loaded.
            RunError: it cannot be loaded.
        """
        async with self._busy:
            talk = self._talks.get(named)
            if talk is not None and talk.pid is not None:
                return talk
            if len(self.loaded) >= MOST:
                raise ConfigError(f"{MOST} models are loaded already", fix="Unload one", code="too_many")
            talk = Talk(named, deploy_words(named, place), self._root)
            try:
                await talk.open()
            except BaseException:
                await talk.close()
                raise
            self._talks[named] = talk
            return talk

    async def close(self, named: str | None = None) -> None:
        """Unload one model, or all."""
        for name in list(self._talks) if named is None else [named]:
            talk = self._talks.pop(name, None)
            if talk is not None:
                await talk.close()


def deploy_words(named: str, place: Path | None) -> list[str]:
    """The command that serves a model, a run or an adapter."""
    flag = "--adapters" if place is not None and _is_adapter(place) else "--model"
    return ["deploy", flag, named]


def _is_adapter(place: Path) -> bool:
    if run_number(place) is not None:
        kept = sorted((place / "checkpoints").glob("step-*"))
        return bool(kept) and _is_adapter(kept[-1])
    return (place / "adapter_config.json").exists()


def _piece(data: str) -> str:
    """The text of one piece of an answer.  Raises RunError for an error within the stream."""
    row = orjson.loads(data)
    if "error" in row:
        raise RunError(str(row["error"].get("message", "the answer broke off")), code="refused")
    choices = row.get("choices") or [{}]
    delta = choices[0].get("delta", {})
    return (delta.get("reasoning_content") or "") + (delta.get("content") or "")


def _refusal(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "the model refused to answer"
