"""Questions with written answers: general_qa, GSM8K, and reading comprehension in the layout of SQuAD."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.base.errors import DataError
from luthier.base.records import Message, Role
from luthier.evaluate.config import Method, SetConfig
from luthier.evaluate.files import Line, read, read_json, subsets
from luthier.evaluate.mcq import ACCURACY
from luthier.evaluate.task import Item, Rates, Task
from luthier.score.answers import same_number
from luthier.score.text import bleu, exact_match, f1, is_chinese, rouge, span_f1

_ASKS, _ANSWERS = ("query", "question", "instruction", "prompt"), ("response", "answer", "output", "completion")


def general_qa(name: str, folder: Path, config: SetConfig, _: Method) -> list[Task]:
    """A folder of `<subset>.jsonl` (or .csv) of query and response; messages and a system message are known too."""
    tasks: list[Task] = []
    for subset, path in subsets(folder, config.subset_list, f"_{config.split}" if config.split else "", name).items():
        lines = read(path, None if config.limit is None else config.limit + config.few_shot_num)
        pairs = [_pair(line, config.prompt_template) for line in lines]
        items = _items(pairs, pairs[: config.few_shot_num], config.few_shot_num)
        tasks.append(
            Task(name, subset, items, "generate", mark_text, config.max_new_tokens or 512, (), config.metric_list)
        )
    return tasks


def gsm8k(name: str, folder: Path, config: SetConfig, _: Method) -> list[Task]:
    """GSM8K: <split>.jsonl of question and answer that ends in #### number."""
    split = config.split or "test"
    path = folder if folder.is_file() else folder / f"{split}.jsonl"
    template = config.prompt_template or (
        "{question}\nThink step by step, and end with a line '#### N', where N is the answer as a number."
    )
    train = path.with_name("train.jsonl")
    shots = [_solved(line, template) for line in read(train, config.few_shot_num)] if config.few_shot_num else []
    items = _items([_solved(line, template) for line in read(path, config.limit)], shots, 0)
    return [Task(name, split, items, "generate", mark_number, config.max_new_tokens or 512, (), config.metric_list)]


def squad(name: str, folder: Path, config: SetConfig, _: Method) -> list[Task]:
    """Reading comprehension: JSON files with data, paragraphs, qas and answers (SQuAD, CMRC 2018, DRCD, XQuAD)."""
    inner = folder / "squad-style-data"
    place = inner if inner.is_dir() else folder
    tasks: list[Task] = []
    for subset, path in subsets(place, config.subset_list, f"_{config.split}" if config.split else "", name).items():
        value = read_json(path)
        try:
            asked = [pair for article in value["data"] for pair in _read(article, config.prompt_template)]
        except (KeyError, TypeError) as error:
            raise DataError(f"not in the layout of SQuAD: no {error}", where=str(path), code="bad_question") from error
        count = config.few_shot_num
        asked = asked if config.limit is None else asked[: config.limit + count]
        items = _items(asked, asked[:count], count)
        tasks.append(
            Task(name, subset, items, "generate", mark_span, config.max_new_tokens or 48, (), config.metric_list)
        )
    return tasks


_Pair = tuple[str, tuple[Message, ...], tuple[str, ...]]
"""Key, what is asked, right answers."""


def _items(pairs: Sequence[_Pair], shots: Sequence[_Pair], skip: int) -> tuple[Item, ...]:
    """Items with worked examples in front; the first `skip` pairs are those examples."""
    front = [turn for _, asked, answers in shots for turn in (*asked, Message("assistant", answers[0]))]
    items: list[Item] = []
    for number, (key, asked, answers) in enumerate(pairs[skip:], skip):
        system = [turn for turn in asked if turn.role == "system"]
        turns = [*system, *(turn for turn in [*front, *asked] if turn.role != "system")]
        items.append(Item(f"{number}:{key}" if key else str(number), tuple(turns), answers))
    return tuple(items)


def _pair(line: Line, template: str | None) -> _Pair:
    turns = _messages(line)
    answer = next((line.text(name) for name in _ANSWERS if line.values.get(name) is not None), None)
    if turns and answer is None and turns[-1].role == "assistant":
        answer = turns.pop().content
    if not turns:
        query = next((line.text(name) for name in _ASKS if line.values.get(name) is not None), None)
        if query is None or answer is None:
            raise line.wrong("needs query and response", 'Write {"query": "...", "response": "..."}')
        if extra := line.text("input") if "instruction" in line.values else "":
            query = f"{query}\n{extra}"
        if line.text("system"):
            turns.append(Message("system", line.text("system")))
        turns.append(Message("user", (template or "{question}").replace("{question}", query)))
    if answer is None or turns[-1].role != "user":
        raise line.wrong("needs a question and its answer")
    return "", tuple(turns), (answer,)


def _messages(line: Line) -> list[Message]:
    """The turns of a row that has messages."""
    given = line.values.get("messages")
    turns: list[Message] = []
    for turn in given if isinstance(given, list) else ():
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        roles: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
        if not isinstance(content, str) or not isinstance(role, str) or role not in roles:
            raise line.wrong("a turn of messages needs a role (system, user, assistant) and text as content")
        turns.append(Message(roles[role], content))
    return turns


def _solved(line: Line, template: str) -> _Pair:
    question, answer = line.text("question") or line.text("instruction"), line.text("answer")
    if not question or not answer:
        raise line.wrong("needs question and answer")
    return "", (Message("user", template.replace("{question}", question)),), (answer,)


def _read(article: Any, template: str | None) -> list[_Pair]:
    pairs: list[_Pair] = []
    for paragraph in article["paragraphs"]:
        context = str(paragraph["context"])
        default = (
            "{context}\n\n根据上文回答，只写答案。\n{question}"
            if is_chinese(context)
            else "{context}\n\nAnswer from the text above, with the answer alone.\n{question}"
        )
        for asked in paragraph["qas"]:
            text = (template or default).replace("{question}", str(asked["question"])).replace("{context}", context)
            answers = tuple(dict.fromkeys(str(answer["text"]) for answer in asked["answers"]))
            if answers:
                pairs.append((str(asked["id"]), (Message("user", text),), answers))
    return pairs


def mark_text(item: Item, text: str) -> Rates:
    """BLEU, ROUGE, exact match and F1."""
    (reference, *_) = item.references
    found = bleu(text, reference) | rouge(text, reference)
    found |= {"exact_match": exact_match(text, item.references), "f1": f1(text, item.references)}
    return {name: (value, 1.0) for name, value in found.items()}


def mark_number(item: Item, text: str) -> Rates:
    """Whether the solution ends with the right number."""
    return {ACCURACY: (float(same_number(text, item.references)), 1.0)}


def mark_span(item: Item, text: str) -> Rates:
    """Exact match and F1, and for Chinese the F1 of the longest shared run."""
    found = {"exact_match": exact_match(text, item.references), "f1": f1(text, item.references)}
    if any(map(is_chinese, item.references)):
        found["span-f1"] = span_f1(text, item.references)
    return {name: (value, 1.0) for name, value in found.items()}
