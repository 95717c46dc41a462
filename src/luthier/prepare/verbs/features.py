"""Print the score a fine-tune has to beat: bags of words and TF-IDF with linear classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from luthier.base.errors import DataError
from luthier.base.records import Json
from luthier.prepare.baseline import Bag, Classifier, Codes, Scored, Weights, analyzed, halves, score
from luthier.prepare.config import VerbConfig
from luthier.prepare.frame import Frame
from luthier.prepare.labels import label_of
from luthier.prepare.parcel import Batch, Parcel
from luthier.prepare.report import Chart, Report, Table
from luthier.prepare.segment import forget
from luthier.prepare.verb import Job, Outcome, Verb
from luthier.prepare.view import column, text_of

_LABELS = ("label", "labels", "category", "class", "sentiment", "intent")
_CONFUSED = 20


class FeaturesConfig(VerbConfig):
    """A baseline of words."""

    label: str | None = None
    """Column with the classes. Unset: label, category, class, sentiment or intent, the first there is."""
    text: tuple[str, ...] = ()
    """Columns with the text. Unset: all text of a row."""
    test: tuple[str, ...] = ()
    """Data sets to score on. Unset: a part of the rows, of every class alike, that the seed decides."""
    test_share: float = Field(default=0.2, gt=0.0, lt=1.0)
    """How large that part is."""
    classifiers: tuple[Classifier, ...] = ("logistic", "svm", "bayes")
    """Linear classifiers to try: logistic regression, a linear SVM, naive Bayes."""
    weights: Weights = "tfidf"
    """What counts: tfidf, counts (a plain bag of words), or binary (whether a word is there)."""
    ngrams: int = Field(default=2, ge=1, le=5)
    """Longest phrase, in words; Chinese is cut into words by jieba."""
    characters: int = Field(default=0, ge=0, le=8)
    """Longest run of characters that counts besides words, from 2 on; 0: none. Helps with misspelt text."""
    min_rows_with: int = Field(default=1, ge=1)
    """Leave out phrases that stand in fewer rows."""
    max_features: int | None = Field(default=None, ge=1)
    """Keep so many phrases, the most frequent ones."""
    remove_stop_words: bool = False
    """Leave out stop words, English and Chinese ones."""
    max_rows: int = Field(default=200_000, ge=2)
    """Train on at most so many rows, evenly over the set: all of their text is held in memory."""


@dataclass(frozen=True)
class _Read:
    """Texts and labels of rows as columns of Python strings [rows]; rows that the attached `wanted` leaves out, and
    rows without a label, are empty.  In the first pass of a frame nothing is attached, and all are wanted."""

    label: str
    text: tuple[str, ...]

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        texts = np.empty(len(batch.items), object)
        labels = np.empty(len(batch.items), object)
        for number, (item, wanted) in enumerate(zip(batch.items, batch.attached["wanted"].tolist(), strict=True)):
            value = item.value
            label = label_of(value, self.label) if wanted else None
            labels[number] = label
            if wanted and label is None:
                parcel.tally.count("without_label")
                parcel.tally.example("without_label", item.where, row=item.json().decode())
            if label is not None:
                rest = {name: cell for name, cell in value.items() if name != self.label}
                found = [column(value, name) for name in self.text]
                text = "\n".join(str(cell) for cell in found if cell is not None) if self.text else text_of(rest)
                texts[number] = analyzed(text)
        parcel.columns |= {"text": texts, "label": labels}
        return parcel


@dataclass(frozen=True)
class _Names:
    """The columns there are, as counts."""

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item in batch.items:
            for name in item.value:
                parcel.tally.count(name)
        return parcel


@dataclass(frozen=True)
class _Set:
    """Texts with their labels."""

    texts: list[str]
    labels: list[str]


def features(rows: Frame, config: FeaturesConfig, job: Job) -> Outcome:
    """Score linear classifiers over words.

    Raises:
        DataError: codes `no_label` and `one_class` when there are no classes to tell apart, `too_few_rows` when no row
            can be held out.
        MissingExtra: scikit-learn or jieba is not installed.
    """
    report = Report()
    label = config.label or _label(rows)
    train = _read(rows, label, config, report)
    names = sorted(set(train.labels))
    where = ", ".join(source.name for source in rows.sources)
    if len(names) < 2:
        what = f"the column {label!r} holds one class only, {names[0]!r}"
        fix = "Give rows of two classes at least, or name another column: --label"
        raise DataError(what, where=where, code="one_class", fix=fix)
    codes = _codes(train.labels, names)
    if config.test:
        other = job.open(config.test)
        test = _read(other, label, config, report)
        unknown = sum(name not in set(names) for name in test.labels)
        if unknown:
            report.notes.append(f"{unknown:,} test rows are of classes that no training row has; they count as wrong.")
            names += sorted(set(test.labels) - set(names))
        truth = _codes(test.labels, names)
        seen, held = train, test
    else:
        out = halves(codes, config.test_share, job.seed)
        if not out.any():
            raise DataError("no class has two rows, so none can be held out", where=where, code="too_few_rows")
        truth = codes[out]
        held = _Set([text for text, is_out in zip(train.texts, out, strict=True) if is_out], [])
        seen = _Set([text for text, is_out in zip(train.texts, out, strict=True) if not is_out], [])
        codes = codes[~out]
    bag = Bag(
        config.weights,
        config.ngrams,
        config.characters,
        config.min_rows_with,
        config.max_features,
        config.remove_stop_words,
    )
    forget()  # so that the dictionary and scikit-learn, the two largest things here, are never there together
    scores: list[Scored] = []
    with job.console.progress("Scoring", len(config.classifiers)) as bar:
        for kind in config.classifiers:
            scores.append(_score(kind, bag, seen.texts, codes, held.texts, truth, job.seed, where))
            bar.advance(1)
    _tell(report, scores, names, codes, truth)
    return Outcome(report)


def _score(
    kind: Classifier,
    bag: Bag,
    train: Sequence[str],
    codes: Codes,
    test: Sequence[str],
    truth: Codes,
    seed: int,
    where: str,
) -> Scored:
    try:
        return score(kind, bag, train, codes, test, truth, seed)
    except ValueError as error:  # scikit-learn: no words are left
        fix = "Lower --min_rows_with, or keep stop words"
        raise DataError(f"no words to count: {error}", where=where, code="no_words", fix=fix) from error


def _label(rows: Frame) -> str:
    found = rows.measure(_Names(), "Looking").tally.counts
    named = next((name for name in found if name.lower() in _LABELS), None)
    if named is None:
        what = f"no column looks like a label: {', '.join(list(found)[:12])}"
        where = ", ".join(source.name for source in rows.sources)
        raise DataError(what, where=where, code="no_label", fix="Name the column with the classes: --label")
    return named


def _read(rows: Frame, label: str, config: FeaturesConfig, report: Report) -> _Set:
    """Texts and labels of at most `max_rows` rows, evenly over the set."""
    if rows.facts.rows == 0:
        rows.measure(_Names(), "Looking")
    wanted = np.zeros(len(rows), bool)
    wanted[np.linspace(0, len(rows) - 1, min(len(rows), config.max_rows)).astype(np.int64)] = True
    found = rows.measure(_Read(label, config.text), "Reading", {"wanted": wanted})
    report.tally.add(found.tally)
    pairs = zip(found.columns["text"], found.columns["label"], strict=True)
    kept = [(text, name) for text, name in pairs if name is not None]
    if not kept:
        where = ", ".join(source.name for source in rows.sources)
        raise DataError(f"no row has a value in the column {label!r}", where=where, code="no_label")
    return _Set([text for text, _ in kept], [name for _, name in kept])


def _codes(labels: Sequence[str], names: Sequence[str]) -> Codes:
    number = {name: at for at, name in enumerate(names)}
    return np.array([number[label] for label in labels], np.int64)


def _tell(report: Report, scores: Sequence[Scored], names: Sequence[str], train: Codes, truth: Codes) -> None:
    commonest = int(np.bincount(train).argmax())
    best = max(scores, key=lambda one: one.accuracy)
    table: list[dict[str, Json]] = [_row(f"always {names[commonest]!r}", float((truth == commonest).mean()), None, 0)]
    table += [_row(one.name, one.accuracy, round(one.macro_f1, 4), one.features) for one in scores]
    report.tables.append(Table("Scores", table))
    report.summary |= {
        "training rows": len(train),
        "test rows": len(truth),
        "classes": len(names),
        "accuracy to beat": round(best.accuracy, 4),
        "macro F1 of it": round(best.macro_f1, 4),
    }
    hardest: list[int] = np.argsort(best.f1, kind="stable").tolist()
    classes = [_class(best, at, names[at], int((truth == at).sum())) for at in hardest]
    report.tables.append(Table(f"Classes, by {best.name}", classes))
    shown = hardest[:20]
    f1 = [round(float(best.f1[at]), 4) for at in shown]
    report.charts.append(Chart("F1 of the hardest classes", [names[at] for at in shown], f1, y="F1"))
    report.tables.append(Table("Most confused", _confused(names, truth, best.predicted)))
    chance = 1.96 * (best.accuracy * (1 - best.accuracy) / len(truth)) ** 0.5
    report.notes.append(
        f"A fine-tuned model has to reach more than {best.accuracy:.1%} accuracy ({best.name}, the best of "
        f"{len(scores)}) on the same rows; chance alone moves this number by about {chance:.1%} either way "
        f"(95 %, {len(truth):,} rows)."
    )


def _row(name: str, accuracy: float, macro_f1: float | None, number: int) -> dict[str, Json]:
    return {"classifier": name, "accuracy": round(accuracy, 4), "macro F1": macro_f1, "features": number}


def _class(scored: Scored, at: int, name: str, rows: int) -> dict[str, Json]:
    return {
        "class": name,
        "test rows": rows,
        "precision": round(float(scored.precision[at]), 4),
        "recall": round(float(scored.recall[at]), 4),
        "F1": round(float(scored.f1[at]), 4),
        "speaks for it": ", ".join(scored.telling[at][:6]),
    }


def _confused(names: Sequence[str], truth: Codes, predicted: Codes) -> list[dict[str, Json]]:
    """The commonest mistakes."""
    wrong = truth != predicted
    pairs, counts = np.unique(np.stack([truth[wrong], predicted[wrong]]), axis=1, return_counts=True)
    order: list[int] = np.argsort(-counts, kind="stable")[:_CONFUSED].tolist()
    return [
        {"is": names[int(pairs[0, at])], "taken for": names[int(pairs[1, at])], "rows": int(counts[at])} for at in order
    ]


VERB = Verb(
    name="features",
    config=FeaturesConfig,
    run=features,
    about="Print the score a fine-tune has to beat: bags of words and TF-IDF with linear classifiers.",
    examples=(
        "luthier data features labelled.jsonl",
        "luthier data features train.csv --test test.csv --label category --report baseline.json",
        "luthier data features reviews.jsonl --weights counts --ngrams 1 --classifiers bayes",
    ),
    writes=False,
    reads=("test",),
)
