"""What is sent to the servers of others, and how their streams are read: pure functions of requests and of lines.

Prompts go out as token ids, and token ids come back; text is made of them here, so that every engine writes alike.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from luthier.base.errors import DataError
from luthier.generate.request import Request, Score
from luthier.serve.engines import EngineFailed
from luthier.serve.launch import BASE, Peer


@dataclass(frozen=True, slots=True)
class Heard:
    """What one line of a stream brings."""

    ids: tuple[int, ...] = ()
    scores: tuple[Score, ...] = ()
    ended: str | None = None
    """Why the answer ended: stop or length."""


class Dialect(Protocol):
    """How one server is spoken to."""

    path: str
    """Route of completions."""
    loads: str | None
    unloads: str | None
    """Routes that load and forget an adapter."""

    def body(self, request: Request, most: int, stop_ids: Collection[int]) -> dict[str, Any]:
        """What is sent for a request of at most `most` tokens.  Raises DataError for a form it does not know."""
        ...

    def hear(self, line: bytes, seen: int) -> Heard:
        """What the JSON of one event says, when `seen` tokens have come before.  Raises EngineFailed."""
        ...


def dialect(peer: Peer) -> Dialect:
    """The dialect of a server."""
    return {"vllm": Vllm, "sglang": Sglang, "lmdeploy": Lmdeploy}[peer]()


class Vllm:
    """OpenAI's completions with vLLM's additions."""

    path: str = "/v1/completions"
    loads: str | None = "/v1/load_lora_adapter"
    unloads: str | None = "/v1/unload_lora_adapter"

    def body(self, request: Request, most: int, stop_ids: Collection[int]) -> dict[str, Any]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": request.adapter or BASE,
            "prompt": list(request.prompt),
            "max_tokens": most,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "stop_token_ids": sorted(stop_ids),
            "seed": sampling.seed,
            "stream": True,
            "return_token_ids": True,
        }
        if request.bias:
            body["logit_bias"] = _biases(request)
        if request.logprobs is not None:
            body |= {"logprobs": request.logprobs, "return_tokens_as_token_ids": True}
        if request.form is not None:
            kind = {"json": "json", "regex": "regex", "lark": "grammar"}[request.form.kind]
            text: Any = orjson.loads(request.form.text) if kind == "json" else request.form.text
            body["structured_outputs"] = {kind: text}
        return body

    def hear(self, line: bytes, seen: int) -> Heard:
        event = _read(line)
        if not event.get("choices"):
            return Heard()
        choice = event["choices"][0]
        ids = tuple(choice.get("token_ids") or ())
        told = choice.get("logprobs") or {}
        scores = tuple(
            Score(token, float(own), tuple((_id(name), float(value)) for name, value in (top or {}).items()))
            for token, own, top in zip(
                ids, told.get("token_logprobs") or (), told.get("top_logprobs") or [None] * len(ids), strict=False
            )
        )
        return Heard(ids, scores, _ending(choice.get("finish_reason")))


class Sglang:
    """SGLang's own route, which counts tokens from the beginning of the answer."""

    path: str = "/generate"
    loads: str | None = "/load_lora_adapter"
    unloads: str | None = "/unload_lora_adapter"

    def body(self, request: Request, most: int, stop_ids: Collection[int]) -> dict[str, Any]:
        sampling = request.sampling
        settings: dict[str, Any] = {
            "max_new_tokens": most,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "stop_token_ids": sorted(stop_ids),
            "sampling_seed": sampling.seed,
        }
        if request.bias:
            settings["logit_bias"] = _biases(request)
        if request.form is not None:
            settings[_form(request, {"json": "json_schema", "regex": "regex"})] = request.form.text
        body: dict[str, Any] = {"input_ids": list(request.prompt), "sampling_params": settings, "stream": True}
        if request.logprobs is not None:
            body |= {"return_logprob": True, "top_logprobs_num": request.logprobs}
        return body | ({"lora_path": request.adapter} if request.adapter else {})

    def hear(self, line: bytes, seen: int) -> Heard:
        event = _read(line)
        told = event.get("meta_info") or {}
        new = int(told.get("completion_tokens") or 0) - seen
        ids = _last(event.get("output_ids"), new)
        tops = _last(told.get("output_top_logprobs"), new) or [()] * len(ids)
        scores = tuple(
            Score(int(own[1]), float(own[0]), tuple((int(top[1]), float(top[0])) for top in each or ()))
            for own, each in zip(_last(told.get("output_token_logprobs"), new), tops, strict=False)
        )
        return Heard(tuple(ids), scores, _ending((told.get("finish_reason") or {}).get("type")))


class Lmdeploy(Sglang):
    """LMDeploy's route of the same form, with its settings beside the prompt."""

    loads: str | None = None
    unloads: str | None = None

    def body(self, request: Request, most: int, stop_ids: Collection[int]) -> dict[str, Any]:
        if request.form is not None:
            raise _unknown_form("LMDeploy's route for token ids")
        if request.bias:
            raise DataError("LMDeploy's route for token ids takes no logit_bias", code="not_supported")
        if request.logprobs:
            raise DataError("LMDeploy tells the chosen tokens' log-probabilities only", code="not_supported")
        sampling = request.sampling
        return {
            "input_ids": list(request.prompt),
            "max_tokens": most,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k if sampling.temperature > 0 else 1,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "stop_token_ids": sorted(stop_ids),
            "return_logprob": request.logprobs is not None,
            "stream": True,
        }


def _biases(request: Request) -> dict[str, float]:
    return {str(token): value for token, value in request.bias}


def _read(line: bytes) -> dict[str, Any]:
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise EngineFailed(f"the engine sent what is no JSON: {line[:100]!r}") from error
    if not isinstance(event, dict) or "error" in event:
        raise EngineFailed(f"the engine says: {str(event)[:300]}")
    return event


def _ending(reason: str | None) -> str | None:
    if reason in ("abort", "error"):
        raise EngineFailed(f"the engine gave up ({reason})")
    return reason


def _last(values: Any, count: int) -> list[Any]:
    """The last values of a list that may hold all of an answer or only what is new."""
    return list(values or ())[-count:] if count > 0 else []


def _id(name: str) -> int:
    """The number in `token_id:5`."""
    return int(name.rpartition(":")[2])


def _form(request: Request, known: Mapping[str, str]) -> str:
    assert request.form is not None
    if request.form.kind not in known:
        raise _unknown_form("SGLang")
    return known[request.form.kind]


def _unknown_form(who: str) -> DataError:
    return DataError(f"{who} cannot hold an answer to this form", code="form_not_supported")
