"""The data sets that can be named, and where their files usually lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from luthier.base.config import nearest
from luthier.base.errors import ConfigError
from luthier.evaluate import labels, mcq, qa, records, retrieval, texts
from luthier.evaluate.config import Method, SetConfig
from luthier.evaluate.specialist import LANGUAGE, Kind, Skill
from luthier.evaluate.task import Task

H = TypeVar("H")


@dataclass(frozen=True, slots=True)
class Entry(Generic[H]):
    """A data set by name."""

    reader: Callable[[str, Path, SetConfig, H], list[Task]]
    """Takes, at last, what the questions depend on besides the settings of the set."""
    place: str
    """Folder below the data root; "" for sets that must be given one."""
    about: str
    skills: tuple[Kind, ...] = ("language",)
    """The models that can be asked."""


_VECTORS: tuple[Kind, ...] = ("language", "vectors")
_ALL_THREE: tuple[Kind, ...] = (*_VECTORS, "pairs")

SETS: Mapping[str, Entry[Method]] = {
    "general_mcq": Entry(mcq.general_mcq, "", "multiple choice in <subset>_val.csv"),
    "general_qa": Entry(qa.general_qa, "", "questions and answers in <subset>.jsonl", ("language", "targets")),
    "classification": Entry(labels.classification, "", "texts and labels in a table"),
    "perplexity": Entry(texts.texts, "", "texts"),
    "retrieval": Entry(retrieval.retrieval, "retrieval-derived", "corpus.jsonl, queries.jsonl and qrels.tsv", _VECTORS),
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
RECORDS: Mapping[str, Entry[Skill]] = {
    "classification": Entry(records.labelled, "", "texts with labels", ("classes",)),
    "tagging": Entry(records.tagged, "", "words with their tags", ("tags",)),
    "similarity": Entry(records.similar, "", "texts that are alike or not", _ALL_THREE),
    "reranking": Entry(records.in_order, "", "queries with texts that answer and texts that do not", _ALL_THREE),
}
"""Sets in the shapes of training, for models with these skills."""
_ALSO = {
    "sts": "similarity",
    "embedding": "similarity",
    "reranker": "reranking",
    "seq_cls": "classification",
    "token_cls": "tagging",
    "ceval": "general_mcq",
    "cmmlu": "general_mcq",
    "openbookqa": "obqa",
    "cmrc2018": "cmrc",
    "ppl": "perplexity",
}


def tasks_of(name: str, config: SetConfig, root: Path | None, method: Method, skill: Skill = LANGUAGE) -> list[Task]:
    """The tasks of a data set that was named; the name may be the file or folder itself.

    Raises:
        ConfigError: no such set, its files are not there, or a model of this skill cannot be asked.
        DataError: a question cannot be read.
    """
    known = _ALSO.get(name, name)
    if known not in SETS and known not in RECORDS:
        return _unnamed(name, config, method, skill)
    talks = known in SETS and (known not in RECORDS or skill.kind == "language")
    entry = SETS[known] if talks else RECORDS[known]
    if skill.kind not in entry.skills:
        raise ConfigError(
            f"the model {skill.words}, and {name} is for one that {' or '.join(Skill(k).words for k in entry.skills)}",
            where="--eval_dataset",
            code="other_skill",
            fix=f"It can be asked: {', '.join(_for(skill))}",
        )
    if config.local_path is None and not (entry.place and root):
        args = f'{{"{name}": {{"local_path": "/path/to/{name}"}}}}'
        fix = f"Give --dataset_args '{args}'" + (f", or --data_root with {entry.place} in it" if entry.place else "")
        raise ConfigError(f"where the files of {name} lie is not said", where="--dataset_args", fix=fix)
    place = Path(config.local_path).expanduser() if config.local_path else (root or Path()) / entry.place
    if not place.exists():
        raise ConfigError("there is no such file or folder", where=str(place), fix=f"{name} needs {entry.about}")
    if talks:
        tasks = SETS[known].reader(name, place, config, method)
    else:
        tasks = RECORDS[known].reader(name, place, config, skill)
    if not any(task.items for task in tasks):
        raise ConfigError(f"nothing is asked in {name}", where=str(place), code="no_questions")
    return [task for task in tasks if task.items]


def _for(skill: Skill) -> list[str]:
    """The sets that a model can be asked."""
    named = [name for name, entry in SETS.items() if skill.kind in entry.skills]
    return list(dict.fromkeys([*(name for name, entry in RECORDS.items() if skill.kind in entry.skills), *named]))


def _unnamed(name: str, config: SetConfig, method: Method, skill: Skill) -> list[Task]:
    """A path in place of a name: its files and the model say what it is."""
    place = Path(name).expanduser()
    if not place.exists():
        hint = nearest(name, [*SETS, *RECORDS, *_ALSO])
        sets = list(dict.fromkeys((*SETS, *RECORDS)))
        known = f"Did you mean {hint!r}?" if hint else f"Known are {', '.join(sets)}, and files and folders"
        raise ConfigError(f"there is no data set {name!r}", where="--eval_dataset", fix=known, code="unknown_dataset")
    config = config.model_copy(update={"local_path": str(place)})
    if skill.kind == "language":
        choice = place.name.endswith("_val.csv") or (place.is_dir() and any(place.glob("*_val.csv")))
        return tasks_of("general_mcq" if choice else "general_qa", config, None, method)
    documents = (place.is_dir() and (place / "corpus.jsonl").is_file()) or any(place.glob("*/corpus.jsonl"))
    return tasks_of("retrieval" if documents else _USUAL[skill.kind], config, None, method, skill)


_USUAL = {
    "targets": "general_qa",
    "classes": "classification",
    "tags": "tagging",
    "vectors": "similarity",
    "pairs": "similarity",
}
"""What a file is taken for that was given without a name."""
