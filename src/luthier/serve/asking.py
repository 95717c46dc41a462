"""From what a client sent to requests of the engine."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.base.errors import DataError
from luthier.base.records import BadRow, Json, Message, Where
from luthier.data.formats import tools_of
from luthier.data.messages import Reader, read_messages
from luthier.generate.config import SamplingConfig
from luthier.generate.request import Form, Request
from luthier.serve.failures import Refusal, bad_row, refused
from luthier.serve.reasoning import begins_thinking
from luthier.serve.spelling import Spelling
from luthier.serve.tools import CallForm
from luthier.serve.voices import Voice
from luthier.serve.wire import Asking, ChatRequest, CompletionRequest, Object, ToolChoice

_WHERE = Where("request", 1)


@dataclass(frozen=True, slots=True)
class Thought:
    """How what a model thinks is told apart from its answer."""

    inside: bool
    """Whether the answer begins inside a thought."""
    told: bool
    """Off, thoughts are left out."""


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt as it stands before its answers."""

    text: str
    places: tuple[int, ...]
    """Where in it each token begins, in characters."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Requests that are answered together, and how their answers are read."""

    requests: tuple[Request, ...]
    """one for each choice"""
    calls: CallForm | None = None
    """how tool calls in the answers are written; None when answers are text"""
    thought: Thought | None = None
    """how thoughts are told; None where they stay in the text"""
    echo: tuple[Echo, ...] = ()
    """the prompt of each choice, where it is told before the answer"""
    silent: bool = False
    """Nothing is written behind the prompts."""


def chat_prompt(
    voice: Voice, messages: Sequence[Object], tools: Sequence[Object] | None, think: bool | None = None
) -> tuple[int, ...]:
    """Token ids that ask for the next message: read and rendered as in training.

    Args:
        think: switches thinking on or off where the template knows that; None leaves it as in training.

    Raises:
        Refusal: 400, naming the message.
    """
    try:
        read = read_messages(Reader(_WHERE), messages, "messages")
        described = tool_list(tools)
        if read and read[0].role != "system" and voice.system:
            read = [Message("system", voice.system), *read]
        renderer = voice.renderer if think is None else voice.thinking(think)
        return tuple(renderer.prompt(read, described))
    except BadRow as error:
        raise bad_row(error) from error
    except DataError as error:
        raise refused(error, "messages") from error


def tool_list(tools: Sequence[Object] | None) -> tuple[Mapping[str, Json], ...]:
    """Tools as templates know them.  Raises BadRow."""
    return tools_of(Reader(_WHERE), {"tools": list(tools)}) if tools else ()


def chat(
    body: ChatRequest, voice: Voice, adapter: str | None, defaults: SamplingConfig, *, reasoning: bool = True
) -> Asked:
    """The requests of a chat.

    Args:
        reasoning: tell what the model thinks apart from what it answers.

    Raises:
        Refusal: 400.
    """
    tools = None if body.tool_choice == "none" else body.tools
    wish = body.chat_template_kwargs
    prompt = chat_prompt(voice, body.messages, tools, wish.think if wish is not None else None)
    form, calls = _form(body, body.response_format), None
    if tools:
        calls = voice.calls
        must = body.tool_choice == "required" or isinstance(body.tool_choice, ToolChoice)
        if must:
            form = _must_call(body, voice, tool_list(tools))
    elif body.tool_choice not in (None, "none", "auto"):
        raise Refusal(400, "tool_choice without tools", "invalid_request", "tool_choice")
    if body.top_logprobs is not None and not body.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs: true", "invalid_request", "top_logprobs")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    most = body.max_completion_tokens or body.max_tokens
    choices = _choices(voice, body, [prompt], adapter, _sampling(body, defaults, most), form, logprobs)
    if not reasoning:
        return Asked(choices, calls)
    thought = Thought(begins_thinking(voice.tokenizer, prompt), body.include_reasoning is not False)
    return Asked(choices, calls, thought)


def completion(body: CompletionRequest, voice: Voice, adapter: str | None, defaults: SamplingConfig) -> Asked:
    """The requests of a completion: `n` for each prompt.  Raises Refusal."""
    _ = voice.renderer  # refuses a model that does not talk
    prompts = prompts_of(voice, body.prompt)
    form = _form(body, None)
    if body.max_tokens == 0 and not body.echo:
        raise Refusal(400, "max_tokens 0 asks for nothing without echo", "invalid_request", "max_tokens")
    # OpenAI answers completions with 16 tokens unless told otherwise.
    sampling = _sampling(body, defaults, body.max_tokens or 16)
    requests = _choices(voice, body, prompts, adapter, sampling, form, body.logprobs)
    if not body.echo:
        return Asked(requests)
    # Control tokens are told where they were sent as ids; what a tokenizer begins every text with is not.
    written = isinstance(body.prompt, str) or isinstance(body.prompt[0], str)
    spelling = Spelling(voice.tokenizer)
    told = {prompt: Echo(*spelling.read(prompt, marks=not written)) for prompt in dict.fromkeys(prompts)}
    return Asked(requests, echo=tuple(told[one.prompt] for one in requests), silent=body.max_tokens == 0)


def prompts_of(
    voice: Voice, given: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
) -> list[tuple[int, ...]]:
    """Texts or token ids as token ids.  Control tokens in a text are text.

    Raises:
        Refusal: an id that the tokenizer does not have.
    """
    if isinstance(given, str):
        return [voice.ids(given)]
    if isinstance(given[0], int):
        given = [[token for token in given if isinstance(token, int)]]
    prompts: list[tuple[int, ...]] = []
    vocabulary = len(voice.tokenizer)
    for one in given:
        assert not isinstance(one, int)
        ids = voice.ids(one) if isinstance(one, str) else tuple(one)
        if any(token >= vocabulary for token in ids):
            raise Refusal(400, f"token ids lie below {vocabulary}", "invalid_request", "prompt")
        prompts.append(ids)
    return prompts


def _choices(
    voice: Voice,
    body: Asking,
    prompts: Sequence[tuple[int, ...]],
    adapter: str | None,
    sampling: SamplingConfig,
    form: Form | None,
    logprobs: int | None,
) -> tuple[Request, ...]:
    bias = _bias(body, len(voice.tokenizer))
    requests: list[Request] = []
    for prompt in prompts:
        for number in range(body.n or 1):
            own = sampling.model_copy(update={"seed": sampling.seed + number})
            requests.append(Request(prompt, own, adapter, form, logprobs, bias))
    return tuple(requests)


def _bias(body: Asking, vocabulary: int) -> tuple[tuple[int, float], ...]:
    """What is added to the scores of single tokens.  Raises Refusal: 400 for what is no token."""
    found: list[tuple[int, float]] = []
    for name, value in (body.logit_bias or {}).items():
        if not name.isascii() or not name.isdigit() or int(name) >= vocabulary:
            raise Refusal(
                400, f"logit_bias: {name!r} is no token id below {vocabulary}", "invalid_request", "logit_bias"
            )
        found.append((int(name), value))
    return tuple(found)


def _sampling(body: Asking, defaults: SamplingConfig, most: int | None) -> SamplingConfig:
    """What was asked for; what was not is as the server's settings say, and the seed is new."""
    stop = [body.stop] if isinstance(body.stop, str) else body.stop
    given: dict[str, Any] = {
        "max_new_tokens": most,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": max(0, body.top_k) if body.top_k is not None else None,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "stop": tuple(stop) if stop is not None else None,
        "seed": body.seed if body.seed is not None else secrets.randbits(48),
    }
    return defaults.model_copy(update={name: value for name, value in given.items() if value is not None})


def _form(body: Asking, wanted: Any) -> Form | None:
    """The one form that an answer must have.  Raises Refusal when there are several."""
    forms: list[Form] = []
    if wanted is not None and wanted.type == "json_object":
        forms.append(Form("json", '{"type": "object"}'))
    if wanted is not None and wanted.type == "json_schema":
        if wanted.json_schema is None:
            raise Refusal(400, "json_schema is missing", "invalid_request", "response_format.json_schema")
        forms.append(Form("json", json.dumps(wanted.json_schema.schema_)))
    if body.guided_json is not None:
        forms.append(Form("json", json.dumps(body.guided_json)))
    if body.guided_regex is not None:
        forms.append(Form("regex", body.guided_regex))
    if body.guided_choice is not None:
        options = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in body.guided_choice)
        forms.append(Form("lark", f"start: {options}"))
    if len(forms) > 1:
        raise Refusal(400, "an answer has one form only", "invalid_request", "response_format")
    return forms[0] if forms else None


def _must_call(body: ChatRequest, voice: Voice, tools: Sequence[Mapping[str, Json]]) -> Form:
    name = body.tool_choice.function.name if isinstance(body.tool_choice, ToolChoice) else None
    names: list[Any] = [dict[str, Any](tool)["function"]["name"] for tool in tools]
    if name is not None and name not in names:
        raise Refusal(400, f"no tool is called {name!r}", "invalid_request", "tool_choice")
    if voice.calls is None:
        message = "the model's chat template writes no tool calls that can be forced"
        raise Refusal(400, message, "template_without_tools", "tool_choice")
    return voice.calls.must(tools, name)
