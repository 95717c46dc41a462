"""What clients send, in OpenAI's words, with bounds on every field.

Messages and tools are read by `data.messages`, as training reads them.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, TypeVar

import pydantic
from pydantic import Field, JsonValue, StringConstraints
from pydantic_core import ErrorDetails

from luthier.base.config import nearest
from luthier.serve.failures import Refusal

LIMIT = 2**20
"""Most characters of one text."""
Text = Annotated[str, StringConstraints(max_length=LIMIT)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=LIMIT)]
Object = dict[str, JsonValue]
Bias = Annotated[float, Field(ge=-100, le=100)]


class Wire(pydantic.BaseModel):
    """Something that clients send; unknown fields are errors, values are never converted."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(Wire):
    """How a stream ends."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(Wire):
    """The schema of an answer."""

    name: Name = "answer"
    description: Text | None = None
    schema_: Object = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(Wire):
    """What an answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Asking(Wire):
    """What chats and completions have in common."""

    model: Name
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: int | None = Field(default=None, ge=1, le=16)
    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    guided_json: Object | None = None
    guided_regex: Annotated[str, StringConstraints(min_length=1, max_length=4096)] | None = None
    guided_choice: Annotated[list[StopText], Field(min_length=1, max_length=256)] | None = None
    logit_bias: (
        Annotated[dict[Annotated[str, StringConstraints(max_length=10)], Bias], Field(max_length=1024)] | None
    ) = None
    user: Text | None = None
    metadata: Object | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with what it used."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class FunctionName(Wire):
    """The name of a function."""

    name: Name


class ToolChoice(Wire):
    """The one tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class TemplateArgs(Wire):
    """What a template is told about thinking; models call it by either name."""

    enable_thinking: bool | None = None
    thinking: bool | None = None

    @property
    def think(self) -> bool | None:
        """Whether it shall think; None where nothing is said."""
        return self.thinking if self.enable_thinking is None else self.enable_thinking


class ChatRequest(Asking):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Object], Field(min_length=1, max_length=4096)]
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Object], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    chat_template_kwargs: TemplateArgs | None = None
    store: bool | None = None
    service_tier: str | None = None


class CompletionRequest(Asking):
    """POST /v1/completions"""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=64)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=64)]
    )
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None
    max_tokens: int | None = Field(default=None, ge=0, lt=2**31)
    suffix: None = None
    best_of: Literal[1] | None = None


class EmbeddingRequest(Wire):
    """POST /v1/embeddings"""

    model: Name
    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=2048)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=2048)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    input_type: Literal["query", "document"] | None = None
    dimensions: int | None = Field(default=None, ge=1, lt=2**20)
    user: Text | None = None


class RerankRequest(Wire):
    """POST /v1/rerank"""

    model: Name
    query: Text
    documents: Annotated[
        list[Text | Annotated[dict[Literal["text"], Text], Field(min_length=1)]], Field(min_length=1, max_length=256)
    ]
    top_n: int | None = Field(default=None, ge=1, lt=2**31)
    return_documents: bool | None = None


class ScoreRequest(Wire):
    """POST /v1/score"""

    model: Name
    text_1: Text | Annotated[list[Text], Field(min_length=1, max_length=256)]
    text_2: Text | Annotated[list[Text], Field(min_length=1, max_length=256)]


class TextPair(Wire):
    """Two texts that are classified together."""

    text: Text
    text_pair: Text


class ClassifyRequest(Wire):
    """POST /classify"""

    model: Name
    input: Text | TextPair | Annotated[list[Text | TextPair], Field(min_length=1, max_length=256)] | None = None
    messages: Annotated[list[Object], Field(min_length=1, max_length=4096)] | None = None
    user: Text | None = None


class TagRequest(Wire):
    """POST /v1/tag"""

    model: Name
    input: (
        Text
        | Annotated[
            list[Text | Annotated[list[Name], Field(min_length=1, max_length=65536)]],
            Field(min_length=1, max_length=256),
        ]
    )
    user: Text | None = None


class PoolingRequest(Wire):
    """POST /pooling"""

    model: Name
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=256)]
    task: Literal["token_classify"] | None = None
    encoding_format: Literal["float"] | None = None
    user: Text | None = None


class TokenizeRequest(Wire):
    """POST /tokenize"""

    model: Name | None = None
    prompt: Text | None = None
    messages: Annotated[list[Object], Field(min_length=1, max_length=4096)] | None = None
    tools: Annotated[list[Object], Field(max_length=128)] | None = None


class DetokenizeRequest(Wire):
    """POST /detokenize"""

    model: Name | None = None
    tokens: Ids


class AdapterRequest(Wire):
    """POST /v1/adapters: the name under which an adapter is registered."""

    name: Name


W = TypeVar("W", bound=Wire)


def read(kind: type[W], body: bytes) -> W:
    """A request from its JSON.

    Raises:
        Refusal: 400, naming the field.
    """
    try:
        return kind.model_validate_json(body)
    except pydantic.ValidationError as error:
        problem = max(error.errors(include_url=False, include_input=False, include_context=False), key=_telling)
        place = _place(problem["loc"], json.loads(body) if problem["loc"] else None)
        message = str(problem["msg"])
        if problem["type"] == "extra_forbidden":
            near = nearest(str(problem["loc"][-1]), kind.model_fields)
            message = "unknown field" + (f"; did you mean {near!r}?" if near else "")
        elif problem["type"] == "none_required":
            message = "this server does not support it"
        text = f"{place}: {message}" if place else message
        raise Refusal(400, text[:500], "invalid_request", place[:200] or None) from error


def _telling(problem: ErrorDetails) -> tuple[bool, tuple[int, ...]]:
    """Where a value may have several shapes: what is wrong with the one that it comes nearest to, for `max`."""
    inner = tuple(part for part in problem["loc"] if isinstance(part, int))
    return not problem["type"].endswith("_type"), inner


def _place(loc: tuple[int | str, ...], body: JsonValue) -> str:
    """Where in a request, `messages[0].role`, without the names that pydantic has for the shapes of a value."""
    place, here = "", body
    for number, part in enumerate(loc):
        if isinstance(part, int):
            place += f"[{part}]"
            here = here[part] if isinstance(here, list) and part < len(here) else None
        elif not isinstance(here, dict) or (part not in here and number < len(loc) - 1):
            continue
        else:
            place += f".{part}" if place else part
            here = here.get(part)
    return place
