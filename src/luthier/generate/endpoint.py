"""Asking an OpenAI-compatible endpoint many questions: retries, a rate limit, and answers that are kept."""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import orjson

from luthier.base.endpoint import EndpointConfig
from luthier.base.errors import ConfigError, RunError
from luthier.base.secrets import redact
from luthier.generate.kept import Kept
from luthier.generate.schema import mismatch

A = TypeVar("A")
T = TypeVar("T")
Chat = Sequence[Mapping[str, str]]
Body = Mapping[str, Any]
Read = Callable[[Any], T]
"""What is wanted of an answer in JSON.  Raises KeyError, IndexError, TypeError or ValueError where it is not there."""
_WRONG = (400, 413, 422)
"""What is wrong is the question, so that another one may be answered."""
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 60.0
_KNOCKS = 3
"""Tries to reach an address that has never answered: it may be just starting, and more likely is the wrong one."""
_MOST_BYTES = 32 * 2**20


class Pace:
    """Lets callers through evenly, at most so many a minute."""

    def __init__(self, per_minute: float | None):
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next, self._lock = 0.0, threading.Lock()

    def wait(self) -> None:
        """Return when it is the caller's turn."""
        if not self._gap:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        time.sleep(max(0.0, turn - now))


@dataclass(frozen=True)
class _Refused(Exception):
    """An answer that another try may better."""

    why: str
    wait: float | None = None


@dataclass(frozen=True)
class _NotReached(_Refused):
    """Nothing answers at the address."""


class NotAnswered(RunError):
    """A question that the endpoint refuses."""


def check_any(refused: Sequence[NotAnswered], asked: int) -> None:
    """Raises NotAnswered, the first one, where every question was refused: then it is not the fault of a question."""
    if refused and len(refused) == asked:
        raise refused[0]


class Endpoint:
    """A model behind an OpenAI-compatible address.

    Args:
        kept: file for the answers.
        patience: seconds before the first further try; doubled each time.

    Raises:
        ConfigError: no address or no model.
    """

    def __init__(self, config: EndpointConfig, kept: Path, *, patience: float = 1.0):
        try:
            config.require()
        except ValueError as error:
            raise ConfigError(str(error), where="endpoint", code="no_endpoint") from error
        self.config, self._kept_at, self._patience = config, kept, patience
        self._pace = Pace(config.requests_per_minute)
        self._answered = threading.Event()

    def ask(
        self,
        chats: Sequence[Chat],
        schema: Mapping[str, Any] | None = None,
        *,
        refused: Callable[[NotAnswered], str] | None = None,
    ) -> list[str]:
        """One answer to each chat, in order; "" where every try gave something that does not fit the schema.

        Equal chats in one call are asked once each: the n-th one has an answer of its own.

        Args:
            schema: JSON schema that an answer must fit; it is sent along and checked here.
            refused: what stands for the answer to a question that is refused, which otherwise is an error.

        Raises:
            RunError: code `endpoint_failed` when a question was refused, or not answered after all tries.  Answers to
                the others are kept.
        """
        seen: dict[bytes, int] = {}
        keys: list[bytes] = []
        for chat in chats:
            body = self.body(chat, schema)
            asked = hashlib.blake2b(orjson.dumps([self.config.address, body]), digest_size=16).digest()
            seen[asked] = seen.get(asked, -1) + 1
            keys.append(asked + seen[asked].to_bytes(4, "little"))
        with closing(Kept(self._kept_at)) as kept:

            def one(asked: tuple[Chat, bytes], stop: threading.Event) -> str:
                chat, key = asked
                answer = kept.get(key)
                if answer is None:
                    try:
                        answer = self._insist("chat/completions", self.body(chat, schema), _content, stop, schema) or ""
                    except NotAnswered as error:
                        if refused is None:
                            raise
                        return refused(error)
                    if answer:
                        kept.put(key, answer)
                return answer

            return self._all(one, list(zip(chats, keys, strict=True)))

    def post(self, path: str, bodies: Sequence[Body], read: Read[T]) -> list[T | NotAnswered]:
        """What is read from the answer to each body, in order; nothing is kept.

        Args:
            path: behind the address, like chat/completions.

        Raises:
            RunError: code `endpoint_failed` when there was no answer after all tries, or no body of this kind will be
                answered.  What is wrong with one body is its answer.
        """

        def one(body: Body, stop: threading.Event) -> T | NotAnswered:
            try:
                found = self._insist(path, body, read, stop)
            except NotAnswered as error:
                return error
            return NotAnswered("not asked", **self._place()) if found is None else found

        return self._all(one, bodies)

    def embed(self, texts: Sequence[str], at_once: int = 64) -> list[list[float]]:
        """The embedding of each text.

        Raises:
            RunError: as `post`, and where texts are refused.
        """
        parts = [list(texts[start : start + at_once]) for start in range(0, len(texts), at_once)]
        found: list[list[float]] = []
        for rows in self.post("embeddings", [{"model": self.config.model, "input": part} for part in parts], _vectors):
            if isinstance(rows, NotAnswered):
                raise rows
            found += rows
        return found

    def _all(self, one: Callable[[A, threading.Event], T], asked: Sequence[A]) -> list[T]:
        """Work through questions, some at a time; the first failure ends all."""
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            stop = threading.Event()
            under_way = [pool.submit(one, each, stop) for each in asked]
            try:
                return [future.result() for future in under_way]
            except BaseException:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def body(self, chat: Chat, schema: Mapping[str, Any] | None) -> dict[str, Any]:
        """What is sent for a chat."""
        config = self.config
        body: dict[str, Any] = {
            "model": config.model,
            "messages": [dict(message) for message in chat],
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
        }
        if schema is not None and config.json_mode:
            wish = {"name": "answer", "strict": True, "schema": dict(schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": wish}
        return body

    def _insist(
        self, path: str, body: Body, read: Read[T], stop: threading.Event, schema: Mapping[str, Any] | None = None
    ) -> T | None:
        """Try until there is an answer; None where no try gave one that fits the schema, or all is to stop."""
        wait, unfit, why = self._patience, False, ""
        tries = self.config.retries + 1
        for attempt in range(tries):
            if stop.is_set():
                return None
            self._pace.wait()
            try:
                answer = self._once(path, body, read)
                wrong = mismatch(str(answer), schema) if schema is not None else None
                if wrong is None:
                    return answer
                unfit, why = True, wrong
            except _Refused as refused:
                unfit, why = False, refused.why
                if isinstance(refused, _NotReached) and not self._answered.is_set() and attempt + 1 >= _KNOCKS:
                    fix = "Look at the address, and whether something is served there"
                    raise RunError(f"no answer after {attempt + 1} tries: {why}", **self._place(), fix=fix) from refused
                if attempt + 1 < tries:
                    stop.wait(min(_LONGEST_WAIT, wait if refused.wait is None else refused.wait))
                    wait *= 2
        if unfit:
            return None
        fix = "What was answered is kept; the same command goes on from there"
        raise RunError(f"no answer after {tries} tries: {why}", **self._place(), fix=fix)

    def _place(self) -> dict[str, str]:
        return {"where": redact(str(self.config.address)), "code": "endpoint_failed"}

    def _once(self, path: str, body: Body, read: Read[T]) -> T:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = os.environ.get(self.config.api_key_env)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        address = f"{str(self.config.address).rstrip('/')}/{path}"
        request = urllib.request.Request(address, orjson.dumps(body), headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self.config.timeout) as response:
                self._answered.set()
                data = response.read(_MOST_BYTES)
        except urllib.error.HTTPError as error:
            self._answered.set()
            with error:
                said = redact(error.read(2000).decode("utf-8", "replace")).strip()
            if error.code in _BUSY:
                raise _Refused(
                    f"HTTP {error.code}: {said[:300]}", _seconds(error.headers.get("Retry-After"))
                ) from error
            fix = "Look at the address and at the model's name"
            if error.code in (401, 403):
                fix = f"Put the key into ${self.config.api_key_env}"
            kind = NotAnswered if error.code in _WRONG else RunError
            raise kind(f"HTTP {error.code}: {said[:300]}", **self._place(), fix=fix) from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            raise _NotReached(f"cannot be reached: {getattr(error, 'reason', error)}") from error
        try:
            return read(orjson.loads(data))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise _Refused(f"an answer without {_missing(error)}: {data[:200]!r}") from error


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:  # a date; then our own patience decides
        return None


def _missing(error: Exception) -> str:
    return repr(error.args[0]) if isinstance(error, KeyError) else f"what is needed ({error})"


def _content(answer: Any) -> str:
    """The text of an answer to a chat, which must have some."""
    content = answer["choices"][0]["message"]["content"]
    if not isinstance(content, str) or not content.strip():
        raise _Refused("an empty answer")
    return content.strip()


def _vectors(answer: Any) -> list[list[float]]:
    return [row["embedding"] for row in sorted(answer["data"], key=lambda row: row["index"])]
