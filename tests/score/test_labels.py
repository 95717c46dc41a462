"""Scores of classes and numbers against scikit-learn's and scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from luthier.score.labels import classified, confusion, regressed

RNG = np.random.default_rng(0)


def test_one_class_each_scores_as_scikit_learn_does():
    wanted, predicted = RNG.integers(0, 5, 200), RNG.integers(0, 5, 200)
    wanted[wanted == 4] = 0  # one class is only predicted
    flags = np.eye(7, dtype=bool)  # and two are nowhere
    scores = classified(flags[predicted], flags[wanted])
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        wanted, predicted, average="macro", zero_division=0
    )
    assert scores == pytest.approx({"macro_precision": precision, "macro_recall": recall, "macro_f1": f1})
    np.testing.assert_array_equal(confusion(predicted, wanted, 5), metrics.confusion_matrix(wanted, predicted))


def test_several_classes_score_as_scikit_learn_does():
    wanted, predicted = RNG.random((100, 4)) < 0.3, RNG.random((100, 4)) < 0.3
    scores = classified(predicted, wanted)
    for average in ("micro", "macro"):
        expected = metrics.precision_recall_fscore_support(wanted, predicted, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
            assert scores[f"{average}_{name}"] == pytest.approx(value)


def test_numbers_score_as_scikit_learn_and_scipy_do():
    wanted = RNG.normal(size=50).round(1)  # with ties
    predicted = wanted + RNG.normal(size=50).round(1)
    scores = regressed(predicted, wanted)
    assert scores == pytest.approx(
        {
            "mse": metrics.mean_squared_error(wanted, predicted),
            "mae": metrics.mean_absolute_error(wanted, predicted),
            "r2": metrics.r2_score(wanted, predicted),
            "pearson": stats.pearsonr(predicted, wanted).statistic,
            "spearman": stats.spearmanr(predicted, wanted).statistic,
        }
    )
    assert regressed(np.ones(3), np.arange(3.0))["pearson"] == 0.0
