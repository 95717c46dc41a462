"""The numbers of EvalScope on the same predictions, by its own functions."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from luthier.score.answers import letters
from luthier.score.text import bleu, rouge

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]


def pairs(test_data: Path) -> list[tuple[str, str]]:
    """A hundred pairs of texts in each language."""
    zh = json.loads((test_data / "xquad/xquad.zh.json").read_text(encoding="utf-8"))["data"]
    chinese = [paragraph["context"] for article in zh for paragraph in article["paragraphs"]][:101]
    lines = (test_data / "gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()[:101]
    english = [json.loads(line)["question"] for line in lines]
    return [*pairwise(chinese), *pairwise(english)]


def test_rouge_and_chinese_bleu(test_data: Path) -> None:
    rouge_of: Any = pytest.importorskip("evalscope.metrics.utils.rouge").compute_rouge_score_one_sample_zh
    bleu_of: Any = pytest.importorskip("evalscope.metrics").bleu_ngram_one_sample
    for prediction, reference in pairs(test_data):
        expected = {name.lower(): value for name, value in rouge_of([prediction], [reference]).items()}
        assert rouge(prediction, reference) == pytest.approx(expected, abs=1e-9)
        try:
            wanted = bleu_of(prediction, reference)
        except LookupError:  # NLTK's sentence splitter is data that it downloads; Chinese needs none
            continue
        assert bleu(prediction, reference) == pytest.approx(wanted, abs=0.02)


def test_letters() -> None:
    choices: Any = pytest.importorskip("evalscope.utils.multi_choices")
    texts = ["ANSWER: B", "ANSWER: (C)", "so ANSWER: A, not B", "nothing", "The Answer is D", "answer: **B**", "E"]
    for text in texts:
        state = type("State", (), {"choices": ["w", "x", "y", "z"]})()
        assert letters(text, 4) == "".join(sorted(choices.parse_answers(state, completion=text)))
        zh = text.replace("ANSWER:", "答案：")
        assert letters(zh, 4) == "".join(sorted(choices.parse_answers_zh(state, completion=zh)))
