"""The data sets that can be named, and where their files usually lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from luthier.base.config import nearest
from luthier.base.errors import ConfigError
from luthier.evaluate import labels, mcq, qa, retrieval, texts
from luthier.evaluate.config import Method, SetConfig
from luthier.evaluate.task import Task

Reader = Callable[[str, Path, SetConfig, Method], list[Task]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A data set by name."""

    reader: Reader
    place: str
    """Folder below the data root; "" for sets that must be given one."""
    about: str


SETS: Mapping[str, Entry] = {
    "general_mcq": Entry(mcq.general_mcq, "", "multiple choice in <subset>_val.csv"),
    "general_qa": Entry(qa.general_qa, "", "questions and answers in <subset>.jsonl"),
    "classification": Entry(labels.classification, "", "texts and labels in a table"),
    "perplexity": Entry(texts.texts, "", "texts"),
    "retrieval": Entry(retrieval.retrieval, "retrieval-derived", "corpus.jsonl, queries.jsonl and qrels.tsv"),
    "mmlu": Entry(mcq.mmlu, "mmlu", "57 subjects, multiple choice"),
    "arc": Entry(mcq.instructed, "llm-adapters-eval/dataset", "science questions, easy and hard"),
    "obqa": Entry(mcq.instructed, "llm-adapters-eval/dataset", "OpenBookQA"),
    "boolq": Entry(mcq.instructed, "llm-adapters-eval/dataset", "yes or no"),
    "gaokao": Entry(mcq.gaokao, "gaokao-bench", "Chinese university entrance, multiple choice"),
    "gsm8k": Entry(qa.gsm8k, "gsm8k", "school mathematics"),
    "cmrc": Entry(qa.squad, "cmrc2018", "Chinese reading comprehension"),
    "drcd": Entry(qa.squad, "drcd", "traditional Chinese reading comprehension"),
    "xquad": Entry(qa.squad, "xquad", "reading comprehension in two languages"),
    "squad": Entry(qa.squad, "", "reading comprehension in the layout of SQuAD"),
}
_ALSO = {"ceval": "general_mcq", "cmmlu": "general_mcq", "openbookqa": "obqa", "cmrc2018": "cmrc", "ppl": "perplexity"}


def tasks_of(name: str, config: SetConfig, root: Path | None, method: Method) -> list[Task]:
    """The tasks of a data set that was named; the name may be the file or folder itself.

    Raises:
        ConfigError: no such set, or its files are not there.
        DataError: a question cannot be read.
    """
    known = _ALSO.get(name, name)
    if known not in SETS:
        return _unnamed(name, config, method)
    entry = SETS[known]
    if config.local_path is None and not (entry.place and root):
        args = f'{{"{name}": {{"local_path": "/path/to/{name}"}}}}'
        fix = f"Give --dataset_args '{args}'" + (f", or --data_root with {entry.place} in it" if entry.place else "")
        raise ConfigError(f"where the files of {name} lie is not said", where="--dataset_args", fix=fix)
    place = Path(config.local_path).expanduser() if config.local_path else (root or Path()) / entry.place
    if not place.exists():
        raise ConfigError("there is no such file or folder", where=str(place), fix=f"{name} needs {entry.about}")
    tasks = entry.reader(name, place, config, method)
    if not any(task.items for task in tasks):
        raise ConfigError(f"nothing is asked in {name}", where=str(place), code="no_questions")
    return [task for task in tasks if task.items]


def _unnamed(name: str, config: SetConfig, method: Method) -> list[Task]:
    """A path in place of a name: its files say what it is."""
    place = Path(name).expanduser()
    if not place.exists():
        hint = nearest(name, [*SETS, *_ALSO])
        known = f"Did you mean {hint!r}?" if hint else f"Known are {', '.join(SETS)}, and files and folders"
        raise ConfigError(f"there is no data set {name!r}", where="--eval_dataset", fix=known, code="unknown_dataset")
    choice = place.name.endswith("_val.csv") or (place.is_dir() and any(place.glob("*_val.csv")))
    kind = "general_mcq" if choice else "general_qa"
    config = config.model_copy(update={"local_path": str(place)})
    return tasks_of(kind, config, None, method)
