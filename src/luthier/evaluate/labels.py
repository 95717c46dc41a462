"""Classification by a language model: a table of texts and labels, whose labels are the options of every text."""

from __future__ import annotations

from pathlib import Path

from luthier.base.errors import ConfigError
from luthier.base.records import Message
from luthier.evaluate.config import Method, SetConfig
from luthier.evaluate.files import Line, read, subsets
from luthier.evaluate.mcq import ACCURACY
from luthier.evaluate.task import MACRO_F1, Item, Rates, Task

_TEXTS, _LABELS = ("text", "sentence", "Input", "input", "query"), ("label", "category", "Label", "output", "class")
_MOST_LABELS = 1000


def classification(name: str, folder: Path, config: SetConfig, method: Method) -> list[Task]:
    """A file, or a folder of `<subset>.csv`: each text is given the label that the model finds likeliest.

    Worked examples are the first rows, which are then not asked.
    """
    tasks: list[Task] = []
    for subset, path in subsets(folder, config.subset_list, f"_{config.split}" if config.split else "", name).items():
        rows = [(_field(line, _TEXTS), _field(line, _LABELS)) for line in read(path)]
        labels = tuple(sorted({label for _, label in rows}))
        if not 1 < len(labels) <= _MOST_LABELS:
            raise ConfigError(f"has {len(labels)} labels, not 2 to {_MOST_LABELS}", where=str(path), code="bad_labels")
        template = (
            config.prompt_template or "Which of these labels fits the text?\n{choices}\n\nText: {question}\nLabel:"
        )
        template = template.replace("{choices}", ", ".join(labels))
        count = config.few_shot_num
        front: list[Message] = []
        for text, label in rows[:count]:
            front += [Message("user", template.replace("{question}", text)), Message("assistant", label)]
        asked = rows[count : None if config.limit is None else count + config.limit]
        items = [
            Item(str(n), (*front, Message("user", template.replace("{question}", text))), (label,), labels, labels)
            for n, (text, label) in enumerate(asked)
        ]
        how = "choose" if (config.method or method) == "likelihood" else "generate"
        longest = config.max_new_tokens or 32
        joint = (MACRO_F1,)
        tasks.append(Task(name, subset, tuple(items), how, mark_label, longest, labels, joint, config.metric_list))
    return tasks


def mark_label(item: Item, text: str) -> Rates:
    """Accuracy of a label written out."""
    return {ACCURACY: (float(text.strip().lower() == item.references[0].lower()), 1.0)}


def _field(line: Line, names: tuple[str, ...]) -> str:
    name = next((name for name in names if name in line.values), None)
    if name is None:
        raise line.wrong(f"needs a column {names[0]} (or {', '.join(names[1:])})")
    return line.text(name).strip()
