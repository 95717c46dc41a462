"""Asking a model the questions of a task, a chunk at a time, each answer kept before the next chunk is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.base.records import Json, Similar
from luthier.base.rundir import RunDir
from luthier.evaluate.likelihood import likelihood
from luthier.evaluate.mcq import ACCURACY
from luthier.evaluate.records import mark_labels, mark_order, mark_tags
from luthier.evaluate.remote import Remote
from luthier.evaluate.retrieval import mark_ranking
from luthier.evaluate.specialist import Prediction, Specialist
from luthier.evaluate.subject import Subject
from luthier.evaluate.task import How, Item, Rates, Result, Task, asked_hash
from luthier.generate.config import SamplingConfig
from luthier.score.entities import scheme_of

_CHUNK: Mapping[How, int] = {
    "choose": 256,
    "generate": 64,
    "read": 64,
    "retrieve": 10**9,
    "rank": 64,
    "relate": 512,
    "label": 512,
    "tag": 512,
}
Talker = Subject | Remote
Examined = Talker | Specialist

_TIE = 1e-4
"""Options whose log-likelihoods differ by less are alike, and the first of them is chosen: rounding decides nothing."""


def measure(subject: Examined, task: Task, kept: Path, progress: Callable[[int], None]) -> Iterator[Sequence[Result]]:
    """The results of a task: first those kept from an earlier run, then each chunk's as it is done.

    Args:
        kept: JSON-lines file of results, continued where it ends; lines of questions that were asked otherwise stay.
            Questions that were refused are asked again.
        progress: told how many questions have been dealt with.
    """
    hashes = [_hash(subject, task, item) for item in task.items]
    wanted = dict(zip([item.key for item in task.items], hashes, strict=True))
    folder = RunDir(kept.parent)
    lines = (line for line in _lines(folder, kept.name) if "refused" not in line.detail)
    found = {line.key: line for line in lines if wanted.get(line.key) == line.asked}
    progress(len(found))
    yield list(found.values())
    waiting = [number for number, item in enumerate(task.items) if item.key not in found]
    size = _CHUNK[task.how]
    for start in range(0, len(waiting), size):
        numbers = waiting[start : start + size]
        items = [task.items[number] for number in numbers]
        if not isinstance(subject, Specialist) and task.how in _TALK:
            results = _TALK[task.how](subject, task, items, numbers[0])
        else:
            results = _ANSWER[task.how](subject, task, items)
        results = [replace(result, asked=hashes[n]) for result, n in zip(results, numbers, strict=True)]
        for result in results:
            folder.append_json(kept.name, result.line())
        progress(len(results))
        yield results


def _hash(subject: Examined, task: Task, item: Item) -> str:
    """Of everything besides the weights that an answer depends on."""
    how: list[Json] = [task.how]
    if not isinstance(subject, Specialist):
        how += subject.manner()
        how += [_sampling(subject, task).model_dump_json()] if task.how == "generate" else []
    if isinstance(subject, Subject) and task.how == "generate":
        how += [] if subject.here is not None else [subject.engine]
    return asked_hash(item, *how)


def _lines(folder: RunDir, name: str) -> list[Result]:
    results: list[Result] = []
    for line in folder.read_rows(name):
        try:
            results.append(Result.of(line))
        except (KeyError, TypeError):  # of another version
            continue
    return results


def _choose(subject: Talker, task: Task, items: Sequence[Item], _: int) -> list[Result]:
    """The likeliest option of each question."""
    results: list[Result] = []
    for item, one in zip(items, subject.weighed(items), strict=True):
        sums = np.array(one.logprobs)
        chosen = item.names[_first(sums)]
        rates: dict[str, tuple[float, float]] = {ACCURACY: (float(chosen in item.references), 1.0)}
        if item.texts and not task.classes:  # also per byte, as lm-evaluation-harness has it
            size = np.array([len(option.encode()) for option in item.options])
            rates["acc_norm"] = (float(item.names[_first(sums / size)] in item.references), 1.0)
        chances = np.exp(sums - sums.max())
        detail: dict[str, Json] = {
            "options": list(item.names),
            "chances": [round(float(chance), 6) for chance in chances / chances.sum()],
        }
        if one.cut:
            detail["cut"] = True
        results.append(_result(item, chosen, rates, detail))
    return results


def _first(scores: np.ndarray) -> int:
    return int(np.flatnonzero(scores >= scores.max() - _TIE)[0])


def _generate(subject: Talker, task: Task, items: Sequence[Item], first: int) -> list[Result]:
    """A generated answer to each question."""
    sampling = _sampling(subject, task)
    answers = subject.answers(items, sampling.model_copy(update={"seed": sampling.seed + first}))
    results: list[Result] = []
    for item, answer in zip(items, answers, strict=True):
        detail: dict[str, Json] = {"finish_reason": answer.finish_reason}
        if answer.cut:
            detail["cut"] = True
        if answer.refused is not None:
            detail["refused"] = answer.refused
        results.append(_result(item, answer.text, task.mark(item, answer.text), detail))
    return results


def _sampling(subject: Talker, task: Task) -> SamplingConfig:
    own = subject.sampling
    stop = own.stop if subject.chat else (*own.stop, "\n\n")  # plain text goes on with a question of its own
    longest = min(own.max_new_tokens, task.max_new_tokens)
    return own.model_copy(update={"stop": stop, "max_new_tokens": longest})


def _read(subject: Talker, _: Task, items: Sequence[Item], __: int) -> list[Result]:
    """What each text costs."""
    assert isinstance(subject, Subject), "texts are read by models in this process only"
    results: list[Result] = []
    for item in items:
        text = item.messages[0].content
        found = likelihood(subject.model, subject.renderer, [text], batch_tokens=subject.batch_tokens)
        rates: Rates = {
            "bits_per_byte": (found.bits, float(found.size)),
            "perplexity": (found.nats, float(found.tokens)),
        }
        results.append(_result(item, "", rates, {"tokens": found.tokens, "bytes": found.size}))
    return results


def _result(item: Item, prediction: str, rates: Rates, detail: Mapping[str, Json]) -> Result:
    asked = item.messages[-1].content
    wanted = ", ".join(item.references) if "classes" in detail and len(item.references) > 1 else item.references[:1]
    return Result(item.key, "", asked[:2000], prediction, "".join(wanted), rates, detail)


def _retrieve(subject: Examined, task: Task, items: Sequence[Item]) -> list[Result]:
    """The documents nearest to each query."""
    assert subject.embeddings is not None, "only models that make vectors are asked to find texts"
    names = [name for name, _ in task.documents]
    corpus_ND = subject.embeddings([text for _, text in task.documents])
    queries_QD = subject.embeddings([item.messages[0].content for item in items], queries=True)
    results: list[Result] = []
    for item, near_N in zip(items, queries_QD @ corpus_ND.T, strict=True):
        found = dict(zip(names, _steady(near_N), strict=True))
        best = sorted(found, key=lambda name: (found[name], name), reverse=True)[:10]
        results.append(_result(item, best[0], mark_ranking(item, found), {"nearest": list(best)}))
    return results


def _rank(subject: Examined, _: Task, items: Sequence[Item]) -> list[Result]:
    """The texts of each query in the order of their scores."""
    rows = [item.record for item in items if isinstance(item.record, Similar)]
    texts = [(*row.positives, *row.negatives) for row in rows]
    pairs = [(row.query, text) for row, mine in zip(rows, texts, strict=True) for text in mine]
    scores = iter(_steady(subject.likeness(pairs)))
    results: list[Result] = []
    for item, mine in zip(items, texts, strict=True):
        own = [next(scores) for _ in mine]
        best = max(range(len(own)), key=lambda n: (own[n], n))
        detail: dict[str, Json] = {"scores": list[Json](own)}
        results.append(_result(item, mine[best], mark_order(item, own), detail))
    return results


def _relate(subject: Examined, _: Task, items: Sequence[Item]) -> list[Result]:
    """How alike two texts are."""
    rows = [item.record for item in items if isinstance(item.record, Similar)]
    scores = _steady(subject.likeness([(row.query, row.positives[0]) for row in rows]))
    return [_result(item, str(score), {}, {}) for item, score in zip(items, scores, strict=True)]


def _label(subject: Examined, _: Task, items: Sequence[Item]) -> list[Result]:
    """The classes of each text, or its number."""
    found = _predicted(subject, items)
    return [_result(item, *mark_labels(item, one)) for item, one in zip(items, found, strict=True)]


def _tag(subject: Examined, task: Task, items: Sequence[Item]) -> list[Result]:
    """The tags of each text's words."""
    found, scheme = _predicted(subject, items), scheme_of(task.classes)
    return [_result(item, *mark_tags(item, one, scheme)) for item, one in zip(items, found, strict=True)]


def _predicted(subject: Examined, items: Sequence[Item]) -> Sequence[Prediction]:
    assert isinstance(subject, Specialist) and subject.predict is not None, "only models that classify are asked to"
    return subject.predict([item.record for item in items if item.record is not None])


def _steady(scores: NDArray[np.floating[Any]]) -> list[float]:
    """Scores without their last digits, which depend on what else is in the batch: rounding decides nothing."""
    return [round(float(score), 5) for score in scores]


def _target(subject: Examined, task: Task, items: Sequence[Item]) -> list[Result]:
    """What is written for each source."""
    assert isinstance(subject, Specialist) and subject.targets is not None
    written = subject.targets([item.messages for item in items])
    return [_result(item, text, task.mark(item, text), {}) for item, text in zip(items, written, strict=True)]


_TALK = {"choose": _choose, "generate": _generate, "read": _read}
_ANSWER = {"generate": _target, "retrieve": _retrieve, "rank": _rank, "relate": _relate, "label": _label, "tag": _tag}
