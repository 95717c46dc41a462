"""What a bag of words and a linear classifier reach: the score that fine-tuning has to beat.

scikit-learn computes it (Pedregosa et al. 2011); the weights are TF-IDF with logarithmic counts, as usual for linear
text classifiers.  Everything is deterministic: no solver here draws anything that is not seeded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from luthier.base.errors import MissingExtra
from luthier.prepare.classical import stop_words
from luthier.prepare.scripts import is_chinese
from luthier.prepare.segment import word_list

Weights = Literal["tfidf", "counts", "binary"]
Classifier = Literal["logistic", "svm", "bayes"]
Codes = NDArray[np.int64]
_WORD = r"(?u)\w+(?:['’]\w+)*|[!?]"


@dataclass(frozen=True)
class Bag:
    """How texts become counts."""

    weights: Weights = "tfidf"
    ngrams: int = 2
    """Longest phrase in words."""
    characters: int = 0
    """Longest run of characters inside words that counts as well; 0: none."""
    min_rows: int = 1
    """A phrase in fewer rows is left out."""
    most: int | None = None
    """Most phrases, the most frequent ones; None: all."""
    remove_stop_words: bool = False


@dataclass(frozen=True)
class Scored:
    """A classifier on rows it has not seen."""

    name: str
    accuracy: float
    macro_f1: float
    features: int
    precision: NDArray[np.float64]
    """[classes]"""
    recall: NDArray[np.float64]
    """[classes]"""
    f1: NDArray[np.float64]
    """[classes]"""
    telling: tuple[tuple[str, ...], ...]
    """The phrases that speak most for each class."""
    predicted: Codes
    """[test rows]"""


def analyzed(text: str) -> str:
    """A text in lower case; Chinese in words with spaces between."""
    lower = text.lower()
    return " ".join(word_list(lower)) if is_chinese(lower) else lower


def score(
    kind: Classifier, bag: Bag, train: Sequence[str], classes: Codes, test: Sequence[str], truth: Codes, seed: int
) -> Scored:
    """Fit a classifier on some texts and score it on others.

    Args:
        train, test: texts, as `analyzed` gives them.
        classes, truth: their classes, 0 to K - 1; [train rows], [test rows].

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    try:
        import sklearn.metrics as metrics
    except ImportError as error:
        raise MissingExtra("scikit-learn", "data", what_for="a baseline") from error
    features = _features(bag)
    counts = features.fit_transform(train)
    test_counts = features.transform(test)
    model = _classifier(kind, seed)
    model.fit(counts, classes)
    predicted = np.asarray(model.predict(test_counts), np.int64)
    labels = np.arange(int(max(classes.max(), truth.max())) + 1)
    by_class: Any = metrics.precision_recall_fscore_support  # its annotations know only text for zero_division
    precision, recall, f1, _ = by_class(truth, predicted, labels=labels, zero_division=0.0)
    present = np.union1d(truth, predicted)
    return Scored(
        kind,
        float(metrics.accuracy_score(truth, predicted)),
        float(np.mean(f1[present])),
        int(counts.shape[1]),
        precision,
        recall,
        f1,
        _telling(model, features, len(labels)),
        predicted,
    )


def _features(bag: Bag) -> Any:
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.pipeline import FeatureUnion

    shared: dict[str, Any] = {"lowercase": False, "min_df": bag.min_rows, "max_features": bag.most}
    kind: Callable[..., Any] = TfidfVectorizer if bag.weights == "tfidf" else CountVectorizer
    if bag.weights == "tfidf":
        shared |= {"sublinear_tf": True}
    elif bag.weights == "binary":
        shared |= {"binary": True}
    stop = sorted(stop_words()) if bag.remove_stop_words else None
    words = kind(token_pattern=_WORD, ngram_range=(1, bag.ngrams), stop_words=stop, **shared)
    if not bag.characters:
        return words
    inside = kind(analyzer="char_wb", ngram_range=(2, bag.characters), **shared)
    return FeatureUnion([("words", words), ("characters", inside)])


def _classifier(kind: Classifier, seed: int) -> Any:
    if kind == "bayes":
        from sklearn.naive_bayes import MultinomialNB

        return MultinomialNB(alpha=0.3)
    if kind == "svm":
        from sklearn.svm import LinearSVC

        return LinearSVC(C=0.5, random_state=seed)
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=10.0, max_iter=1000)


def _telling(model: Any, features: Any, classes: int) -> tuple[tuple[str, ...], ...]:
    """The ten phrases with the largest weight for each class."""
    weights = model.feature_log_prob_ if hasattr(model, "feature_log_prob_") else model.coef_
    names = features.get_feature_names_out()
    rows = np.asarray(weights)
    if rows.shape[0] == 1:  # two classes share one row of weights
        rows = np.concatenate([-rows, rows])
    known = [int(label) for label in model.classes_]
    shown: list[tuple[str, ...]] = []
    for label in range(classes):
        row = rows[known.index(label)] if label in known else None
        if row is not None and model.__class__.__name__ == "MultinomialNB":
            row = row - rows.mean(axis=0)  # what is frequent everywhere tells nothing
        top = [] if row is None else np.argsort(-row, kind="stable")[:10].tolist()
        shown.append(tuple(str(names[at]).removeprefix("words__").removeprefix("characters__") for at in top))
    return tuple(shown)


def halves(codes: Codes, share: float, seed: int) -> NDArray[np.bool_]:
    """Which rows are held out: `share` of every class, drawn by the seed, at least one of a class with two rows and
    more; bool [rows]."""
    held = np.zeros(len(codes), bool)
    draw = np.random.default_rng(seed)
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        number = min(max(1, round(share * len(rows))), len(rows) - 1)
        held[draw.permutation(rows)[:number]] = True
    return held
