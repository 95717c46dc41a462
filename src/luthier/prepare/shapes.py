"""Records written as rows of a wanted shape.  What a shape cannot hold is named, and nothing is lost in silence.

Reading a written row gives an equal record (but for where it stands); the tests hold this for every pair of shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import orjson

from luthier.base.records import (
    Chat,
    Json,
    Judged,
    Labelled,
    Message,
    Pair,
    Prompt,
    Record,
    Similar,
    Tagged,
    Task,
    Text,
)

Row = dict[str, Json]
Losses = list[str]
"""What a row could not hold, by name; filled in while it is written."""


class CannotHold(Exception):
    """The shape is for another kind of record altogether."""


def write(record: Record, shape: str, losses: Losses) -> Row:
    """A record as a row of a shape.

    Args:
        shape: a key of `SHAPES`.
        losses: receives what the shape has no place for.

    Raises:
        CannotHold: nothing sensible can be written.
    """
    row = SHAPES[shape](record, losses)
    if record.weight != 1.0:
        row["weight"] = record.weight
    return row


def _chat_of(record: Record, losses: Losses) -> Chat:
    """The conversation in a record, whatever else it says."""
    match record:
        case Chat():
            return record
        case Judged():
            losses.append("label")
            return Chat(record.messages, record.where, record.tools, record.weight)
        case Labelled() if record.messages:
            losses.append("label")
            return Chat(record.messages, record.where, weight=record.weight)
        case Pair():
            losses.append("rejected")
            return Chat((*record.prompt, *record.chosen), record.where, record.tools, record.weight)
        case Prompt() if isinstance(record.answer, str):
            messages = (*record.messages, Message("assistant", record.answer))
            return Chat(messages, record.where, record.tools, record.weight)
        case _:
            raise CannotHold(f"{_name(record)} is no conversation")


def _name(record: Record) -> str:
    names = {
        Chat: "a chat",
        Text: "plain text",
        Pair: "a preference",
        Judged: "a judged chat",
        Labelled: "a labelled text",
        Tagged: "a tagged sentence",
        Similar: "a text with similar ones",
        Prompt: "a prompt",
    }
    return names[type(record)]


def message_row(message: Message) -> Row:
    """A message as OpenAI writes it; the loss weight as `loss_scale`, which takes any number."""
    row: Row = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        row["reasoning_content"] = message.reasoning
    if message.tool_calls:
        row["tool_calls"] = cast(Json, [dict(call) for call in message.tool_calls])
    for name, value in (("tool_call_id", message.tool_call_id), ("name", message.name)):
        if value is not None:
            row[name] = value
    if message.weight is not None:
        row["loss_scale"] = message.weight
    return row


def _messages(record: Record, losses: Losses) -> Row:
    if isinstance(record, Labelled) and record.messages:
        return {"messages": _rows(record.messages), "label": _label(record)}
    if isinstance(record, Judged):
        return {"messages": _rows(record.messages), **_tools(record.tools), "label": record.good}
    if isinstance(record, Pair):
        if len(record.chosen) == len(record.rejected) == 1 and _is_plain(record.rejected[0], losses):
            rejected = record.rejected[0].content
            if record.margin is not None:
                losses.append("margin")
            messages = _rows((*record.prompt, *record.chosen))
            return {"messages": messages, **_tools(record.tools), "rejected_response": rejected}
        raise CannotHold("the sides of the preference are more than one text")
    if isinstance(record, Prompt) and not isinstance(record.answer, str):
        raise CannotHold("a prompt has no answer")
    chat = _chat_of(record, losses)
    return {"messages": _rows(chat.messages), **_tools(chat.tools)}


def _rows(messages: Sequence[Message]) -> Json:
    return cast(Json, [message_row(message) for message in messages])


def _tools(tools: Sequence[Mapping[str, Json]]) -> Row:
    return {"tools": cast(Json, [dict(tool) for tool in tools])} if tools else {}


def _is_plain(message: Message, losses: Losses) -> bool:
    """Note what a message says besides its text; always true."""
    for name, value in (
        ("weight of a turn", message.weight),
        ("reasoning", message.reasoning),
        ("tool calls", message.tool_calls or None),
        ("tool call id", message.tool_call_id),
        ("name of a speaker", message.name),
    ):
        if value is not None:
            losses.append(name)
    return True


def _sharegpt(record: Record, losses: Losses) -> Row:
    """`conversations` with from and value; tool calls and their results as turns of their own."""
    label: Row = {}
    if isinstance(record, Judged):
        label, record = {"label": record.good}, Chat(record.messages, record.where, record.tools, record.weight)
    elif isinstance(record, Labelled) and record.messages:
        label, record = {"label": _label(record)}, Chat(record.messages, record.where, weight=record.weight)
    chat = _chat_of(record, losses)
    speakers = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
    turns: list[Json] = []
    row: Row = {}
    for number, message in enumerate(chat.messages):
        if message.reasoning is not None:
            losses.append("reasoning")
        if message.tool_call_id is not None or any("id" in call for call in message.tool_calls):
            losses.append("tool call id")
        if message.name is not None:
            losses.append("name of a speaker")
        weight: Row = {} if message.weight is None else {"loss_scale": message.weight}
        if message.role == "system" and number == 0:
            row["system"] = message.content
            if message.weight is not None:
                losses.append("weight of a turn")
            continue
        if message.content or not message.tool_calls:
            turns.append({"from": speakers[message.role], "value": message.content, **weight})
        if message.tool_calls:
            calls = [call["function"] for call in message.tool_calls]
            value = orjson.dumps(calls[0] if len(calls) == 1 else calls).decode()
            turns.append({"from": "function_call", "value": value, **weight})
    row = {"conversations": turns, **row}
    if chat.tools:
        row["tools"] = orjson.dumps([tool.get("function", tool) for tool in chat.tools]).decode()
    return {**row, **label}


def _rounds(chat: Chat, losses: Losses) -> tuple[str, list[tuple[str, str]]]:
    """A chat as its system message and its rounds of question and answer.

    Raises:
        CannotHold: the turns do not alternate.
    """
    messages = list(chat.messages)
    system = ""
    if messages and messages[0].role == "system":
        first = messages.pop(0)
        system = first.content
        _is_plain(first, losses)
    if len(messages) % 2 or any(
        message.role != ("assistant" if number % 2 else "user") for number, message in enumerate(messages)
    ):
        raise CannotHold("the turns are not questions with one answer each")
    for message in messages:
        _is_plain(message, losses)
    if chat.tools:
        losses.append("tools")
    texts = [message.content for message in messages]
    return system, list(zip(texts[::2], texts[1::2], strict=True))


def _rounds_row(record: Record, losses: Losses, question: str, answer: str) -> Row:
    system, rounds = _rounds(_chat_of(record, losses), losses)
    if not rounds:
        raise CannotHold("there is no question with an answer")
    *history, last = rounds
    row: Row = {question: last[0], **({"input": ""} if question == "instruction" else {}), answer: last[1]}
    if system:
        row["system"] = system
    if history:
        row["history"] = [list(pair) for pair in history]
    return row


def _alpaca(record: Record, losses: Losses) -> Row:
    return _rounds_row(record, losses, "instruction", "output")


def _query_response(record: Record, losses: Losses) -> Row:
    return _rounds_row(record, losses, "query", "response")


def _prompt_completion(record: Record, losses: Losses) -> Row:
    """Texts for one plain round, lists of messages for everything else."""
    if isinstance(record, Judged):
        chat = Chat(record.messages, record.where, record.tools, record.weight)
        return {**_completion(chat), "label": record.good}
    chat = _chat_of(record, losses)
    if any(message.weight not in (None, 0.0) for message in chat.messages[:-1] if message.role == "assistant"):
        losses.append("weight of a turn")
    if any(message.role == "assistant" and message.weight is None for message in chat.messages[:-1]):
        losses.append("answers before the last one are trained")
    return _completion(chat)


def _completion(chat: Chat) -> Row:
    prompt, completion = chat.messages[:-1], chat.messages[-1:]
    if not prompt or not completion or completion[0].role != "assistant":
        raise CannotHold("the conversation does not end with an answer to something")
    extra: Losses = []
    for message in chat.messages:
        _is_plain(message, extra)
    if not extra and len(prompt) == 1 and prompt[0].role == "user" and not chat.tools:
        return {"prompt": prompt[0].content, "completion": completion[0].content}
    return {"prompt": _rows(prompt), "completion": _rows(completion), **_tools(chat.tools)}


def _text(record: Record, losses: Losses) -> Row:
    if isinstance(record, Text):
        return {"text": record.text}
    if isinstance(record, Labelled):
        losses.append("label")
        if record.pair is not None or record.messages:
            raise CannotHold("what is labelled is more than one text")
        return {"text": record.text}
    raise CannotHold(f"{_name(record)} is not plain text; a chat template makes text of it, when it is trained")


def _preference(record: Record, losses: Losses) -> Row:
    """TRL's and most hubs' form: prompt, chosen, rejected; texts where one text says it all."""
    pair = _pair_of(record)
    row: Row = {}
    one = len(pair.chosen) == len(pair.rejected) == 1
    extra: Losses = []
    plain = one and len(pair.prompt) == 1 and pair.prompt[0].role == "user"
    for message in (*pair.prompt, *pair.chosen, *pair.rejected):
        _is_plain(message, extra)
    if plain and not extra and not pair.tools:
        row = {"prompt": pair.prompt[0].content, "chosen": pair.chosen[0].content, "rejected": pair.rejected[0].content}
    else:
        row = {"prompt": _rows(pair.prompt), "chosen": _rows(pair.chosen), "rejected": _rows(pair.rejected)}
        row.update(_tools(pair.tools))
    if pair.margin is not None:
        row.update(chosen_score=pair.margin, rejected_score=0.0)
    return row


def _openai_preference(record: Record, losses: Losses) -> Row:
    pair = _pair_of(record)
    if pair.margin is not None:
        losses.append("margin")
    return {
        "input": {"messages": _rows(pair.prompt), **_tools(pair.tools)},
        "preferred_output": _rows(pair.chosen),
        "non_preferred_output": _rows(pair.rejected),
    }


def _pair_of(record: Record) -> Pair:
    if not isinstance(record, Pair):
        raise CannotHold(f"{_name(record)} has no two sides")
    return record


def _kto(record: Record, losses: Losses) -> Row:
    if not isinstance(record, Judged):
        raise CannotHold(f"{_name(record)} was not judged good or bad")
    return _messages(record, losses)


def _classification(record: Record, losses: Losses) -> Row:
    if not isinstance(record, Labelled):
        raise CannotHold(f"{_name(record)} has no label")
    if len(record.messages) > 1:
        return _messages(record, losses)
    for message in record.messages:
        _is_plain(message, losses)
    if record.pair is not None:
        return {"sentence1": record.text, "sentence2": record.pair, "label": _label(record)}
    return {"text": record.text, "label": _label(record)}


def _label(record: Labelled) -> Json:
    return list(record.label) if isinstance(record.label, tuple) else record.label


def _tagging(record: Record, losses: Losses) -> Row:
    if not isinstance(record, Tagged):
        raise CannotHold(f"{_name(record)} has no tags")
    return {"tokens": list(record.tokens), "tags": list(record.tags)}


def _retrieval(record: Record, losses: Losses) -> Row:
    """FlagEmbedding's form: query, pos, neg."""
    if not isinstance(record, Similar):
        raise CannotHold(f"{_name(record)} has no similar texts")
    if record.score is not None:
        losses.append("score")
    row: Row = {"query": record.query, "pos": list(record.positives), "neg": list(record.negatives)}
    if record.positive_scores:
        row["pos_scores"] = list(record.positive_scores)
    if record.negative_scores:
        row["neg_scores"] = list(record.negative_scores)
    return row


def _sentence_pair(record: Record, losses: Losses) -> Row:
    """Two texts with the degree of their likeness."""
    if isinstance(record, Labelled) and record.pair is not None and not isinstance(record.label, str | tuple):
        return {"sentence1": record.text, "sentence2": record.pair, "score": float(record.label)}
    if not isinstance(record, Similar) or len(record.positives) != 1 or record.negatives:
        raise CannotHold(f"{_name(record)} is not two texts")
    row: Row = {"sentence1": record.query, "sentence2": record.positives[0]}
    if record.score is not None:
        row["score"] = record.score
    if record.positive_scores:
        losses.append("scores")
    return row


def _prompt(record: Record, losses: Losses) -> Row:
    """A prompt with the answer to judge by, for reinforcement learning."""
    if not isinstance(record, Prompt):
        chat = _chat_of(record, losses)
        if not chat.messages or chat.messages[-1].role != "assistant":
            raise CannotHold("the conversation does not end with an answer")
        _is_plain(chat.messages[-1], losses)
        record = Prompt(chat.messages[:-1], chat.where, chat.tools, chat.messages[-1].content)
    extra: Losses = []
    for message in record.messages:
        _is_plain(message, extra)
    one = len(record.messages) == 1 and record.messages[0].role == "user" and not extra
    row: Row = {"prompt": record.messages[0].content if one else _rows(record.messages)}
    if record.tools:
        row.update(_tools(record.tools))
    for name, value in (("answer", record.answer), ("action", record.action), ("reward", record.reward)):
        if value is not None:
            row[name] = value
    return row


SHAPES: dict[str, Callable[[Record, Losses], Row]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "query-response": _query_response,
    "prompt-completion": _prompt_completion,
    "text": _text,
    "preference": _preference,
    "openai-preference": _openai_preference,
    "kto": _kto,
    "classification": _classification,
    "tagging": _tagging,
    "retrieval": _retrieval,
    "sentence-pair": _sentence_pair,
    "prompt": _prompt,
}
"""How each shape is written."""

TASKS: dict[str, Task] = {
    "preference": "preference",
    "openai-preference": "preference",
    "kto": "kto",
    "classification": "classification",
    "tagging": "tagging",
    "retrieval": "similarity",
    "sentence-pair": "similarity",
}
"""The task that a row is read for when its own does not fit the shape: a text with a category can be classified."""


def used_columns(value: Mapping[str, Json]) -> Iterator[str]:
    """Columns of a row that any shape may have read."""
    return (name for name in value if name.lower() in _USED)


_USED = frozenset(
    """messages conversations conversation system tools functions history weight instruction input output query question
    ask response answer prompt completion context instances text content chosen rejected chosen_messages
    rejected_messages rejected_response chosen_response preferred_output non_preferred_output preferred_completion
    non_preferred_completion chosen_score rejected_score score_chosen score_rejected label labels kto_tag tokens tags
    ner_tags pos_tags pos neg pos_scores neg_scores anchor positive positives negative negatives sentence1 sentence2
    text1 text2 sentence_a sentence_b premise hypothesis score similarity similarity_score sentence solution
    ground_truth reference action reward""".split()  # noqa: SIM905  (a list is twenty lines)
)
