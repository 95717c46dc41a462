"""A few rows for each task that tiny models are trained on."""

from __future__ import annotations

from typing import Any

from conftest import LINES

from luthier.base.records import Judged, Labelled, Pair, Prompt, Record, Similar, Tagged, Task

WORDS = [line.replace(",", " ").replace(".", " ").split() for line in LINES[:3]]
ROWS: dict[str, list[dict[str, Any]]] = {
    "classes": [{"text": " ".join(WORDS[n % 3][n // 3 :]), "label": "ab"[n % 2]} for n in range(12)],
    "tags": [{"tokens": WORDS[n % 3][: 3 + n // 3], "tags": ["O", "B-x", "I-x"] + ["O"] * (n // 3)} for n in range(12)],
    "texts": [{"text": " ".join(WORDS[n % 3])} for n in range(12)],
    "chats": [
        {
            "messages": [
                {"role": "user", "content": " ".join(WORDS[n % 3][n // 3 :])},
                {"role": "assistant", "content": " ".join(WORDS[n % 3][: 2 + n // 3])},
            ]
        }
        for n in range(12)
    ],
    "scored": [
        {"sentence1": " ".join(WORDS[n % 3][:4]), "sentence2": " ".join(WORDS[n % 2][n // 3 :]), "score": n / 12}
        for n in range(12)
    ],
    "pairs": [
        {
            "query": " ".join(WORDS[n % 3][n // 3 :]),
            "pos": [" ".join(WORDS[n % 3][: 2 + n // 3])],
            "neg": [" ".join(WORDS[(n + 1) % 3][n // 3 :]), " ".join(WORDS[(n + 2) % 3][:3])],
        }
        for n in range(12)
    ],
}


def task_for(record: Record) -> Task:
    """The task that a record is for."""
    found: dict[type, Task] = {
        Pair: "preference",
        Judged: "kto",
        Labelled: "classification",
        Tagged: "tagging",
        Similar: "similarity",
        Prompt: "prompt",
    }
    return found.get(type(record), "language")
