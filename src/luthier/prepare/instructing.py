"""New instructions from examples: what a model is asked, and which of its tasks are worth keeping.

Source: Wang et al., "Self-Instruct: Aligning language models with self-generated instructions" (2023).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from luthier.base.records import Json
from luthier.prepare.models import asked
from luthier.prepare.words import counted
from luthier.score.text import longest_common

_TASK = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("instruction", "input", "output")},
    "required": ["instruction", "input", "output"],
    "additionalProperties": False,
}
_ASKED = (
    "You write tasks that teach an assistant. Below are examples. Write NUMBER new tasks of the same kind and language "
    "that differ from them and from each other in topic, form and difficulty. `input` is material the instruction "
    "speaks of, or empty; `output` is a correct, complete answer. A task must be answerable from its text alone.TOPIC "
    'Reply with JSON: {"tasks": [{"instruction": "...", "input": "...", "output": "..."}]}\n\nExamples:\nEXAMPLES'
)
_UNFIT = re.compile(
    r"\b(image|images|graph|graphs|picture|pictures|photo|file|files|map|maps|plot|draw|video|audio|music|flowchart"
    r"|diagram)\b|图片|图像|照片|视频|音频|画一|附件|文件中|下图|上图|流程图",
    re.IGNORECASE,
)
"""A language model cannot see or draw; the paper leaves such instructions out."""


@dataclass(frozen=True, slots=True)
class Task:
    """An instruction, its material and its answer."""

    instruction: str
    input: str
    output: str

    @property
    def text(self) -> str:
        """Instruction and material, as they are compared."""
        return f"{self.instruction}\n{self.input}" if self.input else self.instruction


def task_of(value: Mapping[str, Json]) -> Task | None:
    """A row as an example; None where it has no question or no answer."""
    instruction, given, output = (value.get(name) for name in ("instruction", "input", "output"))
    if isinstance(instruction, str) and isinstance(output, str) and instruction.strip() and output.strip():
        return Task(instruction, given if isinstance(given, str) else "", output)
    pair = asked(value)
    return Task(pair.prompt, "", pair.answer) if pair.prompt.strip() and pair.answer.strip() else None


def schema(number: int) -> dict[str, Any]:
    """What an answer with new tasks must look like."""
    tasks = {"type": "array", "items": _TASK, "minItems": 1, "maxItems": 4 * number}
    return {"type": "object", "properties": {"tasks": tasks}, "required": ["tasks"], "additionalProperties": False}


def request(examples: Sequence[Task], number: int, topic: str | None) -> list[dict[str, str]]:
    """The chat that asks for new tasks."""
    shown = "\n".join(
        orjson.dumps({"instruction": task.instruction, "input": task.input, "output": task.output}).decode()
        for task in examples
    )
    text = _ASKED.replace("NUMBER", str(number)).replace("TOPIC", f" Topic: {topic}." if topic else "")
    return [{"role": "user", "content": text.replace("EXAMPLES", shown)}]


def tasks_in(answer: str) -> list[Task]:
    """The tasks of an answer; nothing where it is not what was asked for."""
    try:
        found = orjson.loads(answer)["tasks"] if answer else []
        return [
            Task(*(str(cast(Any, task)[name]).strip() for name in ("instruction", "input", "output"))) for task in found
        ]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return []


def rouge_l(one: Sequence[str], other: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words (Lin, 2004)."""
    if not one or not other:
        return 0.0
    return 2 * longest_common(one, other) / (len(one) + len(other))


@dataclass
class Pool:
    """Instructions that a new one is compared with.

    Args:
        limit: the ROUGE-L from which a task says nothing new.
    """

    limit: float
    _words: list[list[str]] = field(default_factory=list[list[str]])
    _counts: list[Counter[str]] = field(default_factory=list[Counter[str]])

    def add(self, task: Task) -> None:
        """Compare later tasks with this one too."""
        words = counted(task.text)
        self._words.append(words)
        self._counts.append(Counter(words))

    def nearest(self, task: Task) -> float:
        """The largest ROUGE-L with a known task that reaches the limit; 0 when none does."""
        words = counted(task.text)
        counts = Counter(words)
        best = 0.0
        for known, held in zip(self._words, self._counts, strict=True):
            # Words in common are an upper bound that costs little.
            shared = sum(min(n, held[word]) for word, n in counts.items())
            if 2 * shared >= max(self.limit, best) * (len(words) + len(known)) > 0:
                best = max(best, rouge_l(words, known))
        return best if best >= self.limit else 0.0


@dataclass(frozen=True)
class Rules:
    """What a task must be like."""

    shortest: int
    longest: int
    answer_shortest: int
    answer_longest: int


def fault(task: Task, rules: Rules) -> str | None:
    """Why a task is not kept; None when it may be."""
    size, answer = len(counted(task.instruction)), len(counted(task.output))
    if size < rules.shortest:
        return "instruction_too_short"
    if size > rules.longest:
        return "instruction_too_long"
    if _UNFIT.search(task.instruction):
        return "needs_more_than_text"
    if answer < rules.answer_shortest:
        return "answer_too_short"
    if answer > rules.answer_longest:
        return "answer_too_long"
    if task.output == task.input or task.output == task.instruction:
        return "answer_repeats_the_task"
    lines = [line for line in task.output.splitlines() if line.strip()]
    if len(lines) >= 6 and len(set(lines)) * 3 < len(lines):
        return "answer_repeats_itself"
    return None
