"""Texts and what was said of them as rows: a label, tags, a preference, a likeness."""

from __future__ import annotations

from luthier.base.records import Chat, Labelled, Message, Pair, Record, Similar, Tagged, Text
from luthier.prepare.shapes.chats import messages
from luthier.prepare.shapes.parts import (
    CannotHold,
    Losses,
    Row,
    label_of,
    message_rows,
    name_of,
    note_extras,
    tools_row,
)


def text(record: Record, losses: Losses) -> Row:
    if isinstance(record, Text):
        return {"text": record.text}
    if isinstance(record, Labelled):
        losses.append("label")
        if record.pair is not None or record.messages:
            raise CannotHold("what is labelled is more than one text")
        return {"text": record.text}
    raise CannotHold(f"{name_of(record)} is not plain text; a chat template makes text of it, when it is trained")


def preference(record: Record, losses: Losses) -> Row:
    """TRL's and most hubs' form: prompt, chosen, rejected; texts where one text says it all."""
    pair = _pair_of(record)
    row: Row = {}
    one = len(pair.chosen) == len(pair.rejected) == 1
    extra: Losses = []
    plain = one and len(pair.prompt) == 1 and pair.prompt[0].role == "user"
    for message in (*pair.prompt, *pair.chosen, *pair.rejected):
        note_extras(message, extra)
    if plain and not extra and not pair.tools:
        row = {"prompt": pair.prompt[0].content, "chosen": pair.chosen[0].content, "rejected": pair.rejected[0].content}
    else:
        row = {
            "prompt": message_rows(pair.prompt),
            "chosen": message_rows(pair.chosen),
            "rejected": message_rows(pair.rejected),
        }
        row.update(tools_row(pair.tools))
    if pair.margin is not None:
        row.update(chosen_score=pair.margin, rejected_score=0.0)
    return row


def openai_preference(record: Record, losses: Losses) -> Row:
    pair = _pair_of(record)
    if pair.margin is not None:
        losses.append("margin")
    return {
        "input": {"messages": message_rows(pair.prompt), **tools_row(pair.tools)},
        "preferred_output": message_rows(pair.chosen),
        "non_preferred_output": message_rows(pair.rejected),
    }


def _pair_of(record: Record) -> Pair:
    if not isinstance(record, Pair):
        raise CannotHold(f"{name_of(record)} has no two sides")
    return record


def classification(record: Record, losses: Losses) -> Row:
    if not isinstance(record, Labelled):
        raise CannotHold(f"{name_of(record)} has no label")
    if len(record.messages) > 1:
        return messages(record, losses)
    for message in record.messages:
        note_extras(message, losses)
    if record.pair is not None:
        return {"sentence1": record.text, "sentence2": record.pair, "label": label_of(record)}
    return {"text": record.text, "label": label_of(record)}


def tagging(record: Record, losses: Losses) -> Row:
    if not isinstance(record, Tagged):
        raise CannotHold(f"{name_of(record)} has no tags")
    return {"tokens": list(record.tokens), "tags": list(record.tags)}


def retrieval(record: Record, losses: Losses) -> Row:
    """FlagEmbedding's form: query, pos, neg.  A question and its answer are alike; an answer that was not preferred is
    what is not."""
    record = _similar_of(record, losses)
    if record.score is not None:
        losses.append("score")
    row: Row = {"query": record.query, "pos": list(record.positives), "neg": list(record.negatives)}
    if record.positive_scores:
        row["pos_scores"] = list(record.positive_scores)
    if record.negative_scores:
        row["neg_scores"] = list(record.negative_scores)
    return row


def sentence_pair(record: Record, losses: Losses) -> Row:
    """Two texts with the degree of their likeness."""
    if isinstance(record, Labelled) and record.pair is not None and not isinstance(record.label, str | tuple):
        return {"sentence1": record.text, "sentence2": record.pair, "score": float(record.label)}
    record = _similar_of(record, losses)
    if len(record.positives) != 1 or record.negatives:
        raise CannotHold(f"{name_of(record)} is not two texts")
    row: Row = {"sentence1": record.query, "sentence2": record.positives[0]}
    if record.score is not None:
        row["score"] = record.score
    if record.positive_scores:
        losses.append("scores")
    return row


def _similar_of(record: Record, losses: Losses) -> Similar:
    """The texts that are alike in a record: its own, or the two of one exchange."""
    match record:
        case Similar():
            return record
        case Chat():
            query, answer = _exchange(record.messages, losses)
            return Similar(query, (answer,), (), record.where, weight=record.weight)
        case Pair():
            query, chosen = _exchange((*record.prompt, *record.chosen), losses)
            _, rejected = _exchange((*record.prompt, *record.rejected), losses)
            if record.margin is not None:
                losses.append("margin")
            return Similar(query, (chosen,), (rejected,), record.where, weight=record.weight)
        case _:
            raise CannotHold(f"{name_of(record)} has no similar texts")


def _exchange(messages: tuple[Message, ...], losses: Losses) -> tuple[str, str]:
    """What was asked and what was answered, where that is all there is."""
    turns = [message for message in messages if message.role != "system"]
    if [turn.role for turn in turns] != ["user", "assistant"]:
        raise CannotHold("a conversation of several turns is not a text and one like it")
    if len(turns) < len(messages):
        losses.append("system")
    for turn in turns:
        note_extras(turn, losses)
    return turns[0].content, turns[1].content
