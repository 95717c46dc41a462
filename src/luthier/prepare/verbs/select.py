"""Keep the rows that teach most: by length, perplexity, difficulty, confidence or diversity, within a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from luthier.base.errors import DataError
from luthier.prepare.frame import Frame
from luthier.prepare.judging import Floats, Lengths, Numbers, Sketch, by_model
from luthier.prepare.labels import read_labels
from luthier.prepare.models import ModelVerbConfig
from luthier.prepare.parcel import Batch, Parcel
from luthier.prepare.report import Chart, Report, Table
from luthier.prepare.selection import Keep, best, k_centre, semantic_first, unit
from luthier.prepare.verb import Job, Outcome, Verb

By = Literal[
    "length", "answer_length", "perplexity", "loss", "ifd", "confidence", "hard", "column", "k_centre", "semantic"
]
_MODEL = ("perplexity", "loss", "ifd")
_USUAL: dict[By, Keep] = {"perplexity": "lowest", "hard": "lowest"}


class SelectConfig(ModelVerbConfig):
    """What rows are judged by, and how many stay."""

    by: By = "length"
    """length or answer_length; perplexity or loss of the answer under the model; ifd: difficulty of following the
    instruction; confidence, or hard for the least confident; column: any number; k_centre: the most different rows;
    semantic: no two rows that mean the same."""
    column: str = "confidence"
    """Column with the number for confidence, hard and column (dotted paths reach deeper)."""
    length_in: Literal["words", "characters"] = "words"
    """What length counts; each Chinese character is a word here."""
    minimum: float | None = None
    """Leave out rows with a lower score."""
    maximum: float | None = None
    """Leave out rows with a higher score. Unset: 1 for ifd (from there on the instruction does not help), else none."""
    top: int | None = Field(default=None, ge=1)
    """Keep at most this many rows."""
    share: float | None = Field(default=None, gt=0, le=1)
    """Keep at most this share of the rows."""
    keep: Keep | None = None
    """Which end of the scores is kept. Unset: lowest for perplexity and hard, highest for the others."""
    trim: float = Field(default=0.0, ge=0, lt=1)
    """Pass over this share at the kept end first: wrong labels and broken rows gather there."""
    per: str | None = None
    """Column of a class: top and share are meant for each of its values on its own."""
    score_column: str | None = None
    """Write the score into this column."""
    threshold: float = Field(default=0.95, gt=0, le=1)
    """semantic: rows mean the same from this cosine of their embeddings on."""
    embedding: Literal["words", "model"] = "words"
    """What k_centre and semantic compare: words in common, or the model's hidden states."""

    @model_validator(mode="after")
    def _complete(self) -> SelectConfig:
        if self.top is not None and self.share is not None:
            raise ValueError("top and share are both a budget; give one of them")
        if self.by == "k_centre" and self.top is None and self.share is None:
            raise ValueError("k_centre needs a budget: top or share")
        needed = self.by in _MODEL or (self.by in ("k_centre", "semantic") and self.embedding == "model")
        if needed and not self.model.path:
            raise ValueError(f"{self.by} needs a model: --model FOLDER, or nano for a first look")
        return self


@dataclass(frozen=True)
class _Choose:
    """Lets the chosen rows through, with their score if it is wanted."""

    column: str | None

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        names = ("reason", "score")
        values = (batch.attached[name].tolist() for name in names)
        for item, reason, score in zip(batch.items, *values, strict=True):
            known = None if np.isnan(score) else round(score, 6)
            if reason:
                parcel.drop(item, _REASONS[reason], **({} if known is None else {"score": known}))
            elif self.column:
                parcel.keep(item, {**item.value, self.column: known})
            else:
                parcel.keep(item)
        return parcel


_REASONS = ("", "no_score", "too_low", "too_high", "beyond_the_budget", "means_the_same")


def select(rows: Frame, config: SelectConfig, job: Job) -> Outcome:
    """Keep the rows that a score or their difference speaks for.

    Raises:
        DataError: code `no_score` when no row can be judged.
    """
    if config.by in ("k_centre", "semantic"):
        vectors, scores = _vectors(rows, config, job), None
        reasons = np.zeros(len(rows), np.int8)
    else:
        vectors, scores = None, _scores(rows, config, job)
        if np.isnan(scores).all():
            where = ", ".join(source.name for source in rows.sources)
            raise DataError(f"no row has a number for {config.by}", where=where, code="no_score")
        reasons = _bounded(scores, config)
    groups = _groups(rows, config)
    if vectors is not None and config.by == "semantic":
        first = semantic_first(vectors, config.threshold, job.seed)
        reasons[first != np.arange(len(rows))] = 5
    if config.top is not None or config.share is not None:
        for group in groups:
            left = group[reasons[group] == 0]
            budget = config.top if config.top is not None else int(np.floor((config.share or 1) * len(group) + 1e-9))
            if vectors is not None:
                kept = k_centre(vectors[left], budget) if config.by == "k_centre" else np.arange(len(left))[:budget]
            else:
                assert scores is not None, "rows are judged by one or the other"
                kept = best(scores[left], budget, config.keep or _USUAL.get(config.by, "highest"), config.trim)
            outside = np.ones(len(left), bool)
            outside[kept] = False
            reasons[left[outside]] = 4
    shown = np.full(len(rows), np.nan) if scores is None else scores
    report = Report(summary={"kept": int((reasons == 0).sum())})
    _describe(report, shown, reasons, config)
    work = _Choose(config.score_column if scores is not None else None)
    return Outcome(report, rows.scan(work, "Writing", {"reason": reasons, "score": shown}))


def _scores(rows: Frame, config: SelectConfig, job: Job) -> Floats:
    """The score of each row, float64 [rows]; NaN where it has none."""
    if config.by in ("length", "answer_length"):
        work = Lengths(config.by == "answer_length", config.length_in == "words")
        return rows.measure(work, "Measuring").columns["score"]
    if config.by not in _MODEL:
        return rows.measure(Numbers(config.column), "Reading scores").columns["score"]
    loss = job.tool("loss")
    given = by_model(rows, job, lambda prompts, answers: loss(prompts, answers))
    if config.by == "loss":
        return given
    if config.by == "perplexity":
        return np.exp(given)
    # Li et al., "From quantity to quality" (2023): loss of the answer behind its question over that of the answer
    # alone.  Where there is no question, both are the same and nothing is learned about difficulty.
    alone = by_model(rows, job, lambda prompts, answers: loss([""] * len(answers), answers))
    asked_for = by_model(rows, job, lambda prompts, answers: np.array([bool(prompt) for prompt in prompts], float))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((asked_for > 0) & (alone > 0), given / alone, np.nan)


def _vectors(rows: Frame, config: SelectConfig, job: Job) -> NDArray[np.float32]:
    """Embeddings of all rows, of length 1, [N, D]; they are held in memory."""
    if config.embedding == "words":
        return rows.measure(Sketch(), "Embedding").columns["vector"]
    embed = job.tool("embed")
    return unit(np.asarray(by_model(rows, job, lambda prompts, answers: embed(_joined(prompts, answers))), np.float32))


def _joined(prompts: list[str], answers: list[str]) -> list[str]:
    return [f"{prompt}\n{answer}" if prompt else answer for prompt, answer in zip(prompts, answers, strict=True)]


def _bounded(scores: Floats, config: SelectConfig) -> NDArray[np.int8]:
    """Why rows are out already (see _REASONS), int8 [rows]."""
    highest = 1.0 if config.maximum is None and config.by == "ifd" else config.maximum
    reasons = np.where(np.isnan(scores), 1, 0).astype(np.int8)
    if config.minimum is not None:
        reasons[scores < config.minimum] = 2
    if highest is not None:
        reasons[scores > highest] = 3
    return reasons


def _groups(rows: Frame, config: SelectConfig) -> list[NDArray[np.int64]]:
    """Rows that share a budget."""
    if config.per is None:
        return [np.arange(len(rows))]
    labels = read_labels(rows, config.per)
    return [np.flatnonzero(labels.codes == code) for code in range(-1, len(labels.names))]


def _describe(report: Report, scores: Floats, reasons: NDArray[np.int8], config: SelectConfig) -> None:
    counts = np.bincount(reasons, minlength=len(_REASONS)).tolist()
    for reason, count in zip(_REASONS[1:], counts[1:], strict=True):
        if count:
            report.summary[reason] = count
    known = scores[np.isfinite(scores)]
    if not len(known):
        return
    places = (0, 1, 5, 25, 50, 75, 95, 99, 100)
    kept = scores[np.isfinite(scores) & (reasons == 0)]
    report.tables.append(
        Table(
            f"Scores: {config.by}",
            [
                {
                    "percentile": place,
                    "all rows": round(float(np.percentile(known, place)), 4),
                    "kept": round(float(np.percentile(kept, place)), 4) if len(kept) else None,
                }
                for place in places
            ],
        )
    )
    low, high = np.percentile(known, [0, 99])
    if high > low:
        bars, edges = np.histogram(np.minimum(known, high), 20)
        labels = [f"{edge:.4g}" for edge in edges[:-1]]
        report.charts.append(Chart(f"Scores: {config.by}", labels, bars.tolist(), x=config.by))


VERB = Verb(
    name="select",
    config=SelectConfig,
    run=select,
    about="Keep the rows that teach most: by length, perplexity, difficulty, confidence or diversity, within a budget.",
    examples=(
        "luthier data select my.jsonl --by length --minimum 5 --maximum 800 --output some.jsonl",
        "luthier data select chats.jsonl --by ifd --model ./Qwen2.5-0.5B-Instruct --share 0.1 --output hard.jsonl",
        "luthier data select pool.jsonl --by k_centre --top 1000 --output varied.jsonl",
        "luthier data select labelled.jsonl --by hard --column confidence --top 200 --per label --output review.jsonl",
    ),
    tools=("loss", "embed"),
    sample={"by": "length", "top": 10},
)
