"""Asking a model the questions of a task, a chunk at a time, each answer kept before the next chunk is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from luthier.base.records import Json
from luthier.base.rundir import RunDir
from luthier.evaluate.likelihood import likelihood
from luthier.evaluate.mcq import ACCURACY
from luthier.evaluate.retrieval import mark_ranking
from luthier.evaluate.subject import Subject
from luthier.evaluate.task import Item, Rates, Result, Task, asked_hash
from luthier.generate.config import SamplingConfig

_CHUNK = {"choose": 256, "generate": 64, "read": 64, "retrieve": 10**9}
_TIE = 1e-4
"""Options whose log-likelihoods differ by less are alike, and the first of them is chosen: rounding decides nothing."""


def measure(subject: Subject, task: Task, kept: Path, progress: Callable[[int], None]) -> Iterator[Sequence[Result]]:
    """The results of a task: first those kept from an earlier run, then each chunk's as it is done.

    Args:
        kept: JSON-lines file of results, continued where it ends; lines of questions that were asked otherwise stay.
        progress: told how many questions have been dealt with.
    """
    hashes = [_hash(subject, task, item) for item in task.items]
    wanted = dict(zip([item.key for item in task.items], hashes, strict=True))
    folder = RunDir(kept.parent)
    found = {line.key: line for line in _lines(folder, kept.name) if wanted.get(line.key) == line.asked}
    progress(len(found))
    yield list(found.values())
    waiting = [number for number, item in enumerate(task.items) if item.key not in found]
    size = _CHUNK[task.how]
    for start in range(0, len(waiting), size):
        numbers = waiting[start : start + size]
        items = [task.items[number] for number in numbers]
        results = _ANSWER[task.how](subject, task, items, numbers[0])
        results = [replace(result, asked=hashes[n]) for result, n in zip(results, numbers, strict=True)]
        for result in results:
            folder.append_json(kept.name, result.line())
        progress(len(results))
        yield results


def _hash(subject: Subject, task: Task, item: Item) -> str:
    """Of everything besides the weights that an answer depends on."""
    how: list[Json] = [task.how, subject.chat, subject.system if subject.chat else None]
    if task.how == "generate":
        how += [_sampling(subject, task).model_dump_json()]
    return asked_hash(item, *how)


def _lines(folder: RunDir, name: str) -> list[Result]:
    results: list[Result] = []
    for line in folder.read_rows(name):
        try:
            results.append(Result.of(line))
        except (KeyError, TypeError):  # of another version
            continue
    return results


def _choose(subject: Subject, task: Task, items: Sequence[Item], _: int) -> list[Result]:
    """The likeliest option of each question."""
    results: list[Result] = []
    found = subject.scorer.score([subject.asked(item) for item in items])
    for item, one in zip(items, found, strict=True):
        sums = np.array(one.logprobs)
        chosen = item.names[_first(sums)]
        rates: dict[str, tuple[float, float]] = {ACCURACY: (float(chosen in item.references), 1.0)}
        texts = all(option.removesuffix(name) == option for option, name in zip(item.options, item.names, strict=True))
        if texts and not task.classes:  # options of different lengths: also per byte, as lm-evaluation-harness has it
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


def _generate(subject: Subject, task: Task, items: Sequence[Item], first: int) -> list[Result]:
    """A generated answer to each question."""
    sampling = _sampling(subject, task)
    sampling = sampling.model_copy(update={"seed": sampling.seed + first})
    prompts = [subject.prompt(item) for item in items]
    room = max(1, subject.model.max_length - min(sampling.max_new_tokens, subject.model.max_length // 2))
    answers = subject.sampler.generate([prompt[-room:] for prompt in prompts], sampling)
    results: list[Result] = []
    for item, prompt, answer in zip(items, prompts, answers, strict=True):
        detail: dict[str, Json] = {"finish_reason": answer.finish_reason}
        if len(prompt) > room:
            detail["cut"] = True
        results.append(_result(item, answer.text.strip(), task.mark(item, answer.text.strip()), detail))
    return results


def _sampling(subject: Subject, task: Task) -> SamplingConfig:
    own = subject.sampling
    stop = own.stop if subject.chat else (*own.stop, "\n\n")  # plain text goes on with a question of its own
    longest = min(own.max_new_tokens, task.max_new_tokens)
    return own.model_copy(update={"stop": stop, "max_new_tokens": longest})


def _read(subject: Subject, _: Task, items: Sequence[Item], __: int) -> list[Result]:
    """What each text costs."""
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


def _result(item: Item, prediction: str, rates: Rates, detail: dict[str, Json]) -> Result:
    asked = item.messages[-1].content
    return Result(item.key, "", asked[:2000], prediction, item.references[0] if item.references else "", rates, detail)


def _retrieve(subject: Subject, task: Task, items: Sequence[Item], _: int) -> list[Result]:
    """The documents nearest to each query."""
    names = [name for name, _ in task.documents]
    corpus_ND = subject.embeddings([text for _, text in task.documents])
    queries_QD = subject.embeddings([item.messages[0].content for item in items])
    results: list[Result] = []
    for item, near_N in zip(items, queries_QD @ corpus_ND.T, strict=True):
        found = dict(zip(names, near_N.tolist(), strict=True))
        best = sorted(found, key=lambda name: (found[name], name), reverse=True)[:10]
        results.append(_result(item, best[0], mark_ranking(item, found), {"nearest": list(best)}))
    return results


_ANSWER = {"choose": _choose, "generate": _generate, "read": _read, "retrieve": _retrieve}
