"""Multiple choice: files become questions with options, and generated answers letters.

general_mcq reads `<subset>_val.csv` (and `<subset>_dev.csv` for worked examples) with the columns question, A, B ...
up to J, and answer.  mmlu, arc, openbookqa, boolq and gaokao read the layouts that these sets are published in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.base.errors import ConfigError
from luthier.base.records import Message
from luthier.evaluate.config import Method, SetConfig
from luthier.evaluate.files import Line, read, read_json, subsets
from luthier.evaluate.task import Item, Rates, Task
from luthier.score.answers import LETTERS, letters
from luthier.score.text import is_chinese

ACCURACY = "AverageAccuracy"


@dataclass(frozen=True, slots=True)
class Question:
    """A question as its file has it; `right` holds the letters of its right options."""

    key: str
    text: str
    options: tuple[str, ...]
    right: str


@dataclass(frozen=True, slots=True)
class _Words:
    """What is written around questions of one language."""

    one: str
    several: str
    answer: str


_ENGLISH = _Words(
    "Choose the right answer. End with a line 'Answer: X', where X is one of {letters}.\n\n{question}\n{choices}",
    "Choose all right answers. End with a line 'Answer: XY', the letters of {letters} that are right.\n\n"
    "{question}\n{choices}",
    "Answer: ",
)
_CHINESE = _Words(
    "请选出下面问题的正确答案，最后一行写“答案：X”，X 是 {letters} 中的一个。\n\n{question}\n{choices}",
    "请选出下面问题的所有正确答案，最后一行写“答案：XY”，即 {letters} 中正确的字母。\n\n{question}\n{choices}",
    "答案：",
)


def general_mcq(name: str, folder: Path, config: SetConfig, method: Method) -> list[Task]:
    """Tasks of a folder of `<subset>_val.csv`."""
    tasks: list[Task] = []
    for subset, path in subsets(folder, config.subset_list, "_" + (config.split or "val"), name).items():
        shots: list[Question] = []
        if config.few_shot_num:
            dev = path.with_name(f"{subset}_dev{path.suffix}")
            if not dev.is_file():
                raise ConfigError("worked examples are missing", where=str(dev), fix="Set few_shot_num to 0")
            shots = [_lettered(line, n) for n, line in enumerate(read(dev, config.few_shot_num))]
        questions = [_lettered(line, n) for n, line in enumerate(read(path, config.limit))]
        tasks.append(_task(name, subset, questions, shots, config, method))
    return tasks


def mmlu(name: str, folder: Path, config: SetConfig, method: Method) -> list[Task]:
    """MMLU: test/<subject>_test.csv and dev/<subject>_dev.csv with choice0 to choice3 and the right number."""
    split = config.split or "test"
    tasks: list[Task] = []
    for subject, path in subsets(folder / split, config.subset_list, f"_{split}", name).items():
        dev = folder / "dev" / f"{subject}_dev.csv"
        shots = (
            [_numbered(line, n) for n, line in enumerate(read(dev, config.few_shot_num))] if config.few_shot_num else []
        )
        questions = [_numbered(line, n) for n, line in enumerate(read(path, config.limit))]
        tasks.append(_task(name, subject, questions, shots, config, method))
    return tasks


def instructed(name: str, folder: Path, config: SetConfig, method: Method) -> list[Task]:
    """ARC, OpenBookQA and BoolQ as <name>/test.json of instructions whose answer is answer1, true and so on."""
    kinds = {"arc": ("ARC-Easy", "ARC-Challenge"), "obqa": ("openbookqa",), "openbookqa": ("openbookqa",)}
    known = config.subset_list or kinds.get(name, (name,))
    tasks: list[Task] = []
    for subset in known:
        found = [folder] if folder.is_file() else [folder / subset, folder]
        path = next((place / f"{config.split or 'test'}.json" for place in found if place.is_dir()), folder)
        questions = [_instructed(line, n) for n, line in enumerate(read(path, config.limit))]
        train = path.with_name("train.json")
        shots = (
            [_instructed(line, n) for n, line in enumerate(read(train, config.few_shot_num))]
            if config.few_shot_num
            else []
        )
        tasks.append(_task(name, subset, questions, shots, config, method))
    return tasks


def gaokao(name: str, folder: Path, config: SetConfig, method: Method) -> list[Task]:
    """GAOKAO-Bench: files of multiple-choice questions whose options stand inside the question.

    Files of which one entry asks several questions are left out.
    """
    place = folder / "Objective_Questions" if (folder / "Objective_Questions").is_dir() else folder
    tasks: list[Task] = []
    for subset, path in subsets(place, config.subset_list, "", name).items():
        entries = read_json(path)["example"]
        if any(len(entry["answer"]) > 1 for entry in entries):
            if config.subset_list:
                raise ConfigError("an entry of this file asks several questions", where=str(path), code="bad_question")
            continue
        every = [
            Question(f"{n}:{e['index']}", e["question"].strip(), tuple("ABCD"), e["answer"][0])
            for n, e in enumerate(entries)
        ]
        count = config.few_shot_num
        questions = every[count : None if config.limit is None else count + config.limit]
        tasks.append(_task(name, subset, questions, every[:count], config, method))
    return tasks


def _task(
    name: str,
    subset: str,
    questions: Sequence[Question],
    shots: Sequence[Question],
    config: SetConfig,
    method: Method,
) -> Task:
    several = any(len(question.right) > 1 for question in questions)
    method = "generation" if several else config.method or method  # several right options are no choice of one
    items = tuple(_item(question, shots, config, several) for question in questions)
    how = "choose" if method == "likelihood" else "generate"
    return Task(name, subset, items, how, mark_letters, config.max_new_tokens or 64, metrics=config.metric_list)


def _item(question: Question, shots: Sequence[Question], config: SetConfig, several: bool) -> Item:
    words = _CHINESE if is_chinese(question.text + "".join(question.options)) else _ENGLISH
    shown = config.options_as == "letter"
    template = config.prompt_template or ((words.several if several else words.one) if shown else "{question}")
    turns: list[Message] = []
    for example in shots:
        right = example.right if shown else example.options[LETTERS.index(example.right)]
        turns += [
            Message("user", _ask(example, template)),
            Message("assistant", (words.answer if shown else "") + right),
        ]
    names = tuple(LETTERS[: len(question.options)])
    options = tuple(words.answer + name for name in names) if shown else question.options
    return Item(question.key, (*turns, Message("user", _ask(question, template))), (question.right,), options, names)


def _ask(question: Question, template: str) -> str:
    """The question in its template."""
    choices = "\n".join(f"{LETTERS[n]}. {option}" for n, option in enumerate(question.options))
    if set(question.options) <= set(LETTERS):  # they stand inside the question
        choices = ""
    written = template.replace("{letters}", ", ".join(LETTERS[: len(question.options)])).replace("{choices}", choices)
    return written.replace("{question}", question.text).rstrip()


def mark_letters(item: Item, text: str) -> Rates:
    """Accuracy of the letters a text names.  Of several right ones a part is worth its share, and a wrong one all."""
    found, right = set(letters(text, len(item.options))), set(item.references[0])
    share = len(found & right) / len(right) if found <= right else 0.0
    return {ACCURACY: (share, 1.0)}


def _lettered(line: Line, number: int) -> Question:
    values = {name.strip().lstrip("\ufeff"): name for name in line.values}
    letters_here = list(_while_there(values))
    if "question" not in values or "answer" not in values or len(letters_here) < 2:
        raise line.wrong("needs the columns question, A, B (to J) and answer")
    options = [line.text(values[letter]).strip() for letter in letters_here]
    while len(options) > 2 and not options[-1]:  # a row with fewer options than the widest one
        options.pop()
    right = re.sub(r"[\s,，、]", "", line.text(values["answer"])).upper()
    if not right or not set(right) <= set(LETTERS[: len(options)]):
        raise line.wrong(
            f"the answer {line.text(values['answer'])!r} is not one of {', '.join(LETTERS[: len(options)])}"
        )
    key = line.text(values["id"]) if "id" in values else ""
    return Question(
        f"{number}:{key}" if key else str(number), line.text(values["question"]).strip(), tuple(options), right
    )


def _while_there(values: dict[str, str]) -> Iterator[str]:
    for letter in LETTERS:
        if letter not in values:
            return
        yield letter


def _numbered(line: Line, number: int) -> Question:
    options = tuple(line.text(f"choice{n}") for n in range(4))
    answer = line.text("answer")
    if answer not in ("0", "1", "2", "3"):
        raise line.wrong(f"the answer {answer!r} is not a number from 0 to 3")
    return Question(str(number), line.text("question").strip(), options, LETTERS[int(answer)])


def _instructed(line: Line, number: int) -> Question:
    """`... question: Q`, `Answer1: a Answer2: b ...`, `Answer format: ...`, with the answer answer2, true or false."""
    body, _, _ = line.text("instruction").partition("\n\nAnswer format:")
    question, _, listed = body.partition("\n\n")
    question = re.sub(r"^Please .*?question(?: with true or false, question)?: ?", "", question, flags=re.DOTALL)
    options = [option.strip() for option in re.split(r"\s*(?:Answer|Option|Ending|Solution)\d+: ?", listed)[1:]]
    answer = line.text("answer")
    if answer in ("true", "false") and not options:
        return Question(str(number), question.strip(), ("true", "false"), "A" if answer == "true" else "B")
    place = re.fullmatch(r"[a-z]+(\d+)", answer)
    if not place or not 0 < int(place[1]) <= len(options):
        raise line.wrong(f"the answer {answer!r} names none of {len(options)} options")
    return Question(str(number), question.strip(), tuple(options), LETTERS[int(place[1]) - 1])
