"""Answering a file of questions, a line each, so that an interrupted run can go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.base.errors import DataError, LuthierError
from luthier.base.records import BadRow, Chat, Fault, Json, Message
from luthier.base.rundir import RunDir
from luthier.cli.speaker import Speaker
from luthier.data.checks import renamed
from luthier.data.config import DataConfig
from luthier.data.formats import read_record
from luthier.data.row import Row
from luthier.data.sources import drawn_rows
from luthier.generate.request import Request
from luthier.generate.sampler import Completion
from luthier.run.resultfile import drop_errors, other_results, put_in_order, standing


@dataclass(frozen=True, slots=True)
class Question:
    """A chat up to the answer that is wanted, and the answer the data has, if any."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Json], ...]
    reference: str | None


def answer_file(
    dataset: str, result: Path, speaker: Speaker, columns: Mapping[str, str], progress: Callable[[int], None]
) -> str:
    """Answer every row of a data set into a JSON-lines file, one line a row; returns what was done, in a sentence.

    Lines come as answers are finished, each with the `index` of its row, and are put in order at the end.  Rows whose
    answer is there already are skipped, so an interrupted file is finished by the same command.  A row that asks
    nothing gets a line with its `error`, and is tried again by the next command.

    Args:
        columns: what columns of the rows are called, and what they mean.
        progress: told how many rows have been dealt with.

    Raises:
        DataError: the data set cannot be read, or none of its rows answered.
        ConfigError: the file holds answers to other questions.
    """
    rows = drawn_rows(dataset, DataConfig())
    results = RunDir(result.parent)
    done = standing(result, len(rows))
    drop_errors(result)

    def write(index: int, line: Mapping[str, Json]) -> None:
        results.append_json(result.name, {"index": index, **line})
        progress(1)

    def questions() -> Iterator[tuple[tuple[int, Question], Request]]:
        """What is still to be answered; rows that cannot be get their line at once."""
        for index in range(len(rows)):
            try:
                name = _adapter(rows[index])
                asked = question_of(rows[index], speaker.system(name), columns)
                if index in done:
                    _check_same(done[index], asked, result)
                    progress(1)
                else:
                    yield (index, asked), speaker.request(asked.messages, asked.tools, name=name, seed=index)
            except (BadRow, DataError) as error:
                write(index, {"error": str(error)})

    for (index, asked), answer in speaker.generator.answers(questions()):
        write(index, {"error": str(answer)} if isinstance(answer, LuthierError) else _answered(asked, answer))
    lines = put_in_order(result)
    failed = sum("error" in line for line in lines)
    if lines and failed == len(lines):
        why = str(lines[0]["error"])
        raise DataError(f"no row could be answered; the first one: {why}", where=str(result), code="no_answers")
    before = f", {len(done)} of them from before" if done else ""
    return f"{len(lines) - failed} answers and {failed} errors{before}: {result}"


def _answered(asked: Question, completion: Completion) -> dict[str, Json]:
    return {**line_of(asked, completion.text), "finish_reason": completion.finish_reason}


def line_of(asked: Question, response: str) -> dict[str, Json]:
    """A line of the results: what was asked, what was answered, what the data has."""
    return {"messages": _plain(asked), "response": response, "label": asked.reference}


def _adapter(row: Row) -> str | None:
    """The adapter that a row names."""
    named = row.value.get("adapter") if isinstance(row.value, Mapping) else None
    return named if isinstance(named, str) else None


def _plain(asked: Question) -> list[Json]:
    return [{"role": message.role, "content": message.content} for message in asked.messages]


def _check_same(line: Mapping[str, Json], asked: Question, result: Path) -> None:
    if line.get("messages") != _plain(asked):
        raise other_results(result, f"row {line['index']} of this file answers another question")


def question_of(row: Row, system: str | None, columns: Mapping[str, str]) -> Question:
    """What to ask for one row: everything before its last answer, or a question that has none.

    Raises:
        BadRow: the row is broken, or no chat.
    """
    if isinstance(row.value, Fault):
        raise BadRow(row.value)
    renaming = renamed(row.value, columns)
    value: dict[str, Json] = {key: item for key, item in renaming.items() if item is not None and key != "adapter"}
    record = read_record(next(_with_answer(value), value), row.where, [])
    if not isinstance(record, Chat):
        raise BadRow(Fault("not_a_question", row.where, "the row is plain text, not a question"))
    messages = [message for message in record.messages if message.content or message.tool_calls]
    reference = messages.pop().content if messages and messages[-1].role == "assistant" else None
    if not messages or messages[-1].role in ("system", "assistant"):
        raise BadRow(Fault("not_a_question", row.where, "nothing is asked"))
    if messages[0].role != "system":
        messages = [*([Message("system", system)] if system else []), *messages]
    plain = tuple(replace(message, weight=None) for message in messages)
    return Question(plain, record.tools, reference)


def _with_answer(value: dict[str, Json]) -> Iterator[dict[str, Json]]:
    """A row that asks without answering, with an empty answer so that its shape is known."""
    answers = {"query": "response", "question": "answer", "prompt": "completion", "instruction": "output"}
    for asks, answer in answers.items():
        if asks in value and not value.keys() & {"response", "answer", "output", "completion", "messages"}:
            yield {**value, answer: ""}
