"""Rows for other tasks than language modelling: preferences, judgements, labels, tags, similarity, prompts.

Every row has one task it is evidently meant for.  A task can also be asked for, because some rows suit several: a
question with an answer is a chat, and a prompt with a reference.  Column names count without their case.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache

from luthier.base.records import (
    Fault,
    Json,
    Judged,
    Label,
    Labelled,
    Message,
    Pair,
    Prompt,
    Record,
    Similar,
    Tagged,
    Task,
    Where,
)
from luthier.data import spans
from luthier.data.formats import read_conversation, read_record, row_weight, shape_of, tools_of
from luthier.data.messages import Reader, read_messages

_CHATS = ("messages", "conversations", "conversation")
_TEXTS = ("text", "input", "sentence", "content", "query", "question")
_LABELS = ("label", "labels")
_MORE_LABELS = ("category", "class", "intent", "sentiment", "target")
"""Label columns that count when classification is asked for; elsewhere they may be metadata."""
_TAGS = ("tags", "ner_tags", "labels", "label", "pos_tags")
_ANSWERS = ("answer", "solution", "ground_truth", "reference", "response", "completion", "output")
_PROMPTS = ("prompt", "query", "question", "instruction", "input")
_FIRST = ("sentence1", "text1", "sentence_a", "premise")
_SECOND = ("sentence2", "text2", "sentence_b", "hypothesis")
_SCORES = ("score", "similarity", "similarity_score")
_PREFERRED = (
    ("chosen", "rejected"),
    ("chosen_messages", "rejected_messages"),
    ("preferred_output", "non_preferred_output"),
    ("preferred_completion", "non_preferred_completion"),
    ("chosen_response", "rejected_response"),
)
_TAGGED_TEXTS = ("text", "input", "sentence")
_TAG = re.compile(r"[BIOMESLU](-\S+)?")
_Low = Mapping[str, tuple[str, Json]]
"""Columns in lower case, each with its own name and its value."""


def task_of(value: Mapping[str, Json]) -> Task:
    """The task a row is evidently meant for; `language` for everything that gives nothing away."""
    low = {key.lower(): item for key, item in value.items() if item is not None}
    if _spans({name: (name, item) for name, item in low.items()}):
        return "tagging"
    found = _task_by_name(tuple(low))
    if found is not None:
        return found
    label = low.get("label", low.get("labels"))
    if any(name in low for name in _CHATS) and label is not None:
        return "kto" if isinstance(label, bool) else "classification"
    if low.keys() & set(_FIRST) and low.keys() & set(_SECOND):
        return "similarity" if isinstance(label, float) or low.keys() & set(_SCORES) else "classification"
    if "prompt" in low and "completion" in low and label is not None:
        return "kto"
    if isinstance(label, list) and _are_tags(label, low.get("text")):
        return "tagging"
    return "classification" if label is not None and low.keys() & {"text", "input", "sentence"} else "language"


def has_class(value: Mapping[str, Json]) -> bool:
    """Whether a row that gives nothing away has a text and a column that is usually a class, of one short value."""
    low = {key.lower(): item for key, item in value.items() if item is not None}
    found = next((low[name] for name in _MORE_LABELS if name in low), None)
    return isinstance(found, str | int) and bool(low.keys() & set(_TEXTS))


@lru_cache(maxsize=4096)
def _task_by_name(columns: tuple[str, ...]) -> Task | None:
    """The task that names of columns alone give away."""
    keys = set(columns)
    if any({good, bad} <= keys for good, bad in _PREFERRED):
        return "preference"
    if "rejected_response" in keys:
        return "similarity" if "label" in keys else "preference"
    if "kto_tag" in keys:
        return "kto"
    if "tokens" in keys and keys & set(_TAGS):
        return "tagging"
    if {"query", "pos"} <= keys or {"query", "neg"} <= keys or {"anchor", "positive"} <= keys:
        return "similarity"
    if {"input", "reward"} <= keys or {"prompt", "reward"} <= keys:
        return "prompt" if keys & {"action", "state"} else "classification"
    if "prompt" in keys and not keys & {*_CHATS, "completion", "response", "chosen", "text", "label"}:
        return "prompt"
    if keys & {*_CHATS, *_FIRST, "label", "labels"} or {"prompt", "completion"} <= keys:
        return None
    return "language"


def _spans(low: _Low) -> list[Json] | None:
    """Tags told as places in a text, unread; None where there are none."""
    if "tokens" in low or not low.keys() & set(_TAGGED_TEXTS):
        return None
    for name in (*spans.NAMED, *_LABELS):
        found = low[name][1] if name in low else None
        if isinstance(found, list) and (name in spans.NAMED or (found and all(map(spans.span_of, found)))):
            return found
    return None


def _are_tags(labels: list[Json], text: Json) -> bool:
    if not (labels and all(isinstance(label, str) and _TAG.fullmatch(label) for label in labels)):
        return False
    return isinstance(text, str) and len(labels) in (len(text), len(text.split()))


def read_as(
    value: Mapping[str, Json], where: Where, repairs: list[Fault] | None = None, task: Task | None = None
) -> Record:
    """Read a row for a task; None takes the one it is evidently meant for.

    Raises:
        BadRow: with the code and the path of the first fault; `wrong_task` when nothing in the row suits the task.
    """
    wanted = task or task_of(value)
    if wanted == "language":
        return read_record(value, where, repairs)
    reader = Reader(where, repairs)
    low = {key.lower(): (key, item) for key, item in value.items() if item is not None}
    plain = {key: item for key, item in value.items() if item is not None}
    return _READERS[wanted](reader, low, plain)


def _first(low: _Low, names: tuple[str, ...]) -> tuple[str, Json] | None:
    return next((low[name] for name in names if name in low), None)


def _text(reader: Reader, low: _Low, names: tuple[str, ...], what: str) -> str:
    found = _first(low, names)
    if found is None:
        raise reader.fail("missing_key", f"{what} is expected under one of {', '.join(names)}")
    text = reader.text(found[1], found[0])
    if not text.strip():
        raise reader.fail("empty_text", f"{what} is empty", found[0])
    return text


def _number(reader: Reader, value: Json, path: str) -> float:
    """A number or the text of one."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise reader.fail("not_a_number", "a number is expected", path)
    return number


def _preference(reader: Reader, low: _Low, value: Mapping[str, Json]) -> Pair:
    """Two sides as texts or as messages, behind a prompt or a conversation."""
    names = next((pair for pair in _PREFERRED if pair[0] in low and pair[1] in low), None)
    if names is None and "rejected_response" not in low:
        present = next((name for pair in _PREFERRED for name in pair if name in low), None)
        side = "the other side of the preference is missing" if present else "two sides of a preference are expected"
        raise reader.fail("missing_key" if present else "wrong_task", side, present or "")
    if names is None:
        messages = _conversation(reader, value)
        prompt, chosen = _cut(reader, messages)
        key, other = low["rejected_response"]
        rejected = _side(reader, other, key)
    else:
        prompt = _prompt_of(reader, low, value)
        chosen, rejected = (_side(reader, low[name][1], low[name][0]) for name in names)
        prompt, chosen, rejected = _without_shared(reader, prompt, chosen, rejected, low[names[1]][0])
    for side, messages in (("chosen", chosen), ("rejected", rejected)):
        if not any(message.content.strip() or message.tool_calls for message in messages):
            raise reader.fail("empty_side", f"the {side} side says nothing", side)
    if [_said(message) for message in chosen] == [_said(message) for message in rejected]:
        raise reader.fail("identical_sides", "both sides say the same")
    if not any(message.role != "system" for message in prompt):
        raise reader.fail("missing_key", "a preference needs a prompt", "prompt")
    return Pair(
        prompt, chosen, rejected, reader.where, tools_of(reader, value), row_weight(reader, value), _margin(reader, low)
    )


def _said(message: Message) -> tuple[object, ...]:
    return message.role, message.content, message.reasoning, str(message.tool_calls)


def _margin(reader: Reader, low: _Low) -> float | None:
    scores = [low.get(name) for name in ("chosen_score", "rejected_score")]
    scores = scores if all(scores) else [low.get(name) for name in ("score_chosen", "score_rejected")]
    if not all(scores):
        return None
    good, bad = (_number(reader, item, key) for key, item in (found for found in scores if found))
    if good == bad:
        raise reader.fail("tie", "both sides have the same score", scores[0][0] if scores[0] else "")
    return good - bad


def _prompt_of(reader: Reader, low: _Low, value: Mapping[str, Json]) -> tuple[Message, ...]:
    """What stands before the two sides; nothing when each side brings it itself."""
    if any(name in low for name in _CHATS):
        return _conversation(reader, value)
    if "instruction" in low:
        parts = [reader.text(low[name][1], low[name][0]) for name in ("instruction", "input") if name in low]
        text = "\n".join(part for part in parts if part)
        return _with_system(reader, value, (*_history(reader, value), Message("user", text)))
    found = _first(low, _PROMPTS)
    if found is None:
        return ()
    key, item = found
    if isinstance(item, dict):  # OpenAI: {"messages": [...], "tools": [...]}
        return tuple(read_messages(reader, reader.items(item.get("messages"), f"{key}.messages"), f"{key}.messages"))
    if isinstance(item, list):
        return _with_system(reader, value, tuple(read_messages(reader, item, key)))
    return _with_system(reader, value, (*_history(reader, value), Message("user", reader.text(item, key))))


def _history(reader: Reader, value: Mapping[str, Json]) -> tuple[Message, ...]:
    if "history" not in value:
        return ()
    filler: dict[str, Json] = {"query": "q", "response": "a", "history": value["history"]}
    return read_conversation(reader, filler).messages[:-2]


def _with_system(reader: Reader, value: Mapping[str, Json], messages: tuple[Message, ...]) -> tuple[Message, ...]:
    system = reader.text(value.get("system", ""), "system")
    return (Message("system", system), *messages) if system and messages[0].role != "system" else messages


def _conversation(reader: Reader, value: Mapping[str, Json]) -> tuple[Message, ...]:
    return read_conversation(reader, value).messages


def _cut(reader: Reader, messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """A conversation as what comes before its last answer, and the answer."""
    if not messages or messages[-1].role != "assistant":
        raise reader.fail("no_assistant", "the conversation must end with the preferred answer", "messages")
    return messages[:-1], messages[-1:]


def _side(reader: Reader, value: Json, path: str) -> tuple[Message, ...]:
    """One side: a text, a message, or messages."""
    if isinstance(value, str):
        return (Message("assistant", value),)
    if isinstance(value, dict):
        return tuple(read_messages(reader, [value], path))
    return tuple(read_messages(reader, reader.items(value, path), path))


def _without_shared(
    reader: Reader, prompt: tuple[Message, ...], chosen: tuple[Message, ...], rejected: tuple[Message, ...], path: str
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """Sides that repeat the prompt lose it; without a prompt, what both sides begin with becomes it.

    Raises:
        BadRow: `prompt_mismatch` when the sides answer different prompts.
    """
    whole = any(message.role == "user" for message in (chosen[:1] + chosen[1:2]))
    if not whole:
        if any(message.role != "assistant" for message in rejected[:1]):
            raise reader.fail("prompt_mismatch", "one side begins with a prompt and the other does not", path)
        return prompt, chosen, rejected
    shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if _said(one) != _said(other):
            break
        shared += 1
    if shared == max(len(chosen), len(rejected)):
        raise reader.fail("identical_sides", "both sides say the same")
    head = chosen[:shared]
    if any(message.role == "user" for message in (*chosen[shared:][:1], *rejected[shared:][:1])) or not head:
        raise reader.fail("prompt_mismatch", "the two sides answer different prompts", path)
    return head, chosen[shared:], rejected[shared:]


def _kto(reader: Reader, low: _Low, value: Mapping[str, Json]) -> Judged:
    found = _first(low, ("label", "kto_tag"))
    if found is None:
        raise reader.fail("wrong_task", "a label true or false is expected")
    key, label = found
    if isinstance(label, str) and label.lower() in ("true", "false"):
        reader.repair("label_not_boolean", "the label is the text of a boolean", key)
        label = label.lower() == "true"
    if not isinstance(label, bool):
        raise reader.fail("label_not_boolean", "the label must be true or false", key)
    rest = {name: item for name, item in value.items() if name != key}
    chat = read_conversation(reader, rest)
    if not chat.messages or chat.messages[-1].role != "assistant":
        raise reader.fail("no_assistant", "the conversation must end with the judged answer", "messages")
    messages = chat.messages
    if "prompt" in low:  # its answers are not trained, but here only the last one is judged anyway
        messages = tuple(replace(message, weight=None) for message in messages)
    return Judged(messages, label, reader.where, chat.tools, chat.weight)


def _classification(reader: Reader, low: _Low, value: Mapping[str, Json]) -> Labelled:
    found = _first(low, (*_LABELS, *_MORE_LABELS, "reward", *_SCORES))
    if found is None:
        raise reader.fail("wrong_task", "a label is expected under one of " + ", ".join((*_LABELS, *_MORE_LABELS)))
    key, item = found
    label = _number(reader, item, key) if key.lower() == "reward" else _label(reader, item, key)
    weight = row_weight(reader, value)
    if any(name in low for name in _CHATS):
        messages = _conversation(reader, value)
        if not messages:
            raise reader.fail("empty_messages", "the chat has no messages")
        text = "\n".join(message.content for message in messages)
        return Labelled(text, label, reader.where, messages=messages, weight=weight)
    if _first(low, _FIRST) and _first(low, _SECOND):
        one, other = _text(reader, low, _FIRST, "the first text"), _text(reader, low, _SECOND, "the second text")
        return Labelled(one, label, reader.where, pair=other, weight=weight)
    return Labelled(_text(reader, low, (*_TEXTS, "prompt"), "a text"), label, reader.where, weight=weight)


def _label(reader: Reader, value: Json, path: str) -> Label:
    if isinstance(value, list):
        if any(isinstance(item, bool) or not isinstance(item, str | int) for item in value):
            raise reader.fail("bad_label", "several labels are texts or whole numbers", path)
        return tuple(item for item in value if isinstance(item, str | int))
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str | int | float) and value != "":
        return value
    raise reader.fail("bad_label", "a label is a text, a number or a list of them", path)


def _tagged_text(reader: Reader, low: _Low, found: list[Json], weight: float) -> Tagged:
    text = _text(reader, low, _TAGGED_TEXTS, "a text")
    read: list[spans.Span] = []
    for number, item in enumerate(found):
        span = spans.span_of(item)
        if span is None:
            raise reader.fail("bad_span", "a span is [start, end, label], in characters", f"spans[{number}]")
        read.append(span)
    fault = spans.fault_of(read, len(text))
    if fault is not None:
        raise reader.fail("bad_span", fault[0], f"spans[{fault[1]}]")
    words = spans.words_in(text, read)
    tokens = tuple(text[start:end] for start, end in words)
    return Tagged(tokens, tuple(spans.bio(words, read)), reader.where, weight, text, tuple(words))


def _tagging(reader: Reader, low: _Low, value: Mapping[str, Json]) -> Tagged:
    told = _spans(low)
    if told is not None:
        return _tagged_text(reader, low, told, row_weight(reader, value))
    found = _first(low, _TAGS)
    if found is None:
        raise reader.fail("wrong_task", "tags are expected under one of " + ", ".join(_TAGS))
    key, item = found
    tags = tuple(
        reader.text(tag, f"{key}[{i}]") if isinstance(tag, str) else str(tag)
        for i, tag in enumerate(reader.items(item, key))
    )
    if "tokens" in low:
        name, values = low["tokens"]
        tokens = tuple(reader.text(token, f"{name}[{i}]") for i, token in enumerate(reader.items(values, name)))
    else:
        text = _text(reader, low, _TAGGED_TEXTS, "a text")
        tokens = tuple(text) if len(tags) == len(text) else tuple(text.split())
    if not tokens:
        raise reader.fail("empty_text", "there are no tokens", "tokens")
    if len(tokens) != len(tags):
        raise reader.fail("tags_mismatch", f"{len(tags)} tags for {len(tokens)} tokens", key)
    return Tagged(tokens, tags, reader.where, row_weight(reader, value))


def _similarity(reader: Reader, low: _Low, value: Mapping[str, Json]) -> Similar:
    weight = row_weight(reader, value)
    if any(name in low for name in _CHATS):
        return _similar_chat(reader, low, value, weight)
    if _first(low, _FIRST) and _first(low, _SECOND):
        one, other = _text(reader, low, _FIRST, "the first text"), _text(reader, low, _SECOND, "the second text")
        score = _first(low, (*_SCORES, "label"))
        if score is None:
            return Similar(one, (other,), (), reader.where, weight=weight)
        return Similar(one, (other,), (), reader.where, _number(reader, score[1], score[0]), weight=weight)
    query = _text(reader, low, ("query", "anchor", "question"), "a query")
    good = _several(reader, low, ("pos", "positive", "positives"))
    bad = _several(reader, low, ("neg", "negative", "negatives"))
    if not good and not bad:
        raise reader.fail(
            "wrong_task", "texts that are like the query are expected under pos, those that are not under neg"
        )
    scores = [_numbers(reader, low, name) for name in ("pos_scores", "neg_scores")]
    for name, found, texts in (("pos_scores", scores[0], good), ("neg_scores", scores[1], bad)):
        if found and len(found) != len(texts):
            raise reader.fail("scores_mismatch", f"{len(found)} scores for {len(texts)} texts", name)
    return Similar(query, good, bad, reader.where, None, scores[0], scores[1], weight)


def _similar_chat(reader: Reader, low: _Low, value: Mapping[str, Json], weight: float) -> Similar:
    """ms-swift's form: the user's text, the assistant's as the one like it, `rejected_response` as those unlike it."""
    messages = [message for message in _conversation(reader, value) if message.role != "system"]
    if not messages:
        raise reader.fail("empty_messages", "the chat has no messages")
    if any(message.role == "user" for message in messages[1:]):
        raise reader.fail("wrong_task", "a conversation of several turns is not a text and others like it")
    bad = _several(reader, low, ("rejected_response",))
    score = low.get("label")
    good = tuple(message.content for message in messages[1:])
    return Similar(
        messages[0].content,
        good,
        bad,
        reader.where,
        _number(reader, score[1], score[0]) if score and not bad else None,
        weight=weight,
    )


def _several(reader: Reader, low: _Low, names: tuple[str, ...]) -> tuple[str, ...]:
    found = _first(low, names)
    if found is None:
        return ()
    key, item = found
    if isinstance(item, str) and not item.lstrip().startswith("["):
        return (item,)
    return tuple(reader.text(text, f"{key}[{i}]") for i, text in enumerate(reader.items(item, key)))


def _numbers(reader: Reader, low: _Low, name: str) -> tuple[float, ...]:
    if name not in low:
        return ()
    key, item = low[name]
    return tuple(_number(reader, score, f"{key}[{i}]") for i, score in enumerate(reader.items(item, key)))


def _prompt(reader: Reader, low: _Low, value: Mapping[str, Json]) -> Prompt:
    """A prompt alone, with a reference, with an earlier action and its reward, or any chat up to its last answer."""
    reward = low.get("reward")
    action = low.get("action")
    earned = _number(reader, reward[1], reward[0]) if reward else None
    done = reader.text(action[1], action[0]) if action else None
    weight, tools = row_weight(reader, value), tools_of(reader, value)

    def made(messages: tuple[Message, ...], answer: Json) -> Prompt:
        if not any(message.role != "system" and message.content.strip() for message in messages):
            raise reader.fail("empty_text", "the prompt is empty", "prompt")
        return Prompt(messages, reader.where, tools, answer, done, earned, weight)

    if any(name in low for name in _CHATS):
        messages = _conversation(reader, value)
        answer = _first(low, _ANSWERS)
        given: Json = answer[1] if answer else None
        if messages and messages[-1].role == "assistant":
            given = messages[-1].content if given is None else given
            messages = messages[:-1]
        return made(messages, given)
    shape = shape_of({key: item for key, item in value.items() if key.lower() not in ("reward", "action", "state")})
    if shape in ("alpaca", "query-response", "prompt-completion"):
        chat = read_conversation(reader, value)
        given = chat.messages[-1].content
        return made(chat.messages[:-1], given)
    messages = _prompt_of(reader, low, value)
    answer = _first(low, _ANSWERS)
    return made(messages, answer[1] if answer else None)


def as_task(record: Record) -> Task:
    """The task a record is for."""
    found: dict[type, Task] = {
        Pair: "preference",
        Judged: "kto",
        Labelled: "classification",
        Tagged: "tagging",
        Similar: "similarity",
        Prompt: "prompt",
    }
    return found.get(type(record), "language")


_READERS: dict[Task, Callable[[Reader, _Low, Mapping[str, Json]], Record]] = {
    "preference": _preference,
    "kto": _kto,
    "classification": _classification,
    "tagging": _tagging,
    "similarity": _similarity,
    "prompt": _prompt,
}
