"""How many rows a task usually wants: published rules of thumb, each with its source.

They say where others began to succeed, not what a given set will reach: quality and variety count for more than rows.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Advice:
    """A rule of thumb for one task."""

    task: str
    few: int
    """Below this hardly anybody reports success."""
    many: int
    """Where published work usually is."""
    unit: str
    source: str


SFT = Advice(
    "supervised fine-tuning",
    50,
    1_000,
    "rows",
    "OpenAI's fine-tuning guide: improvements from 50 to 100 examples on; Zhou et al. 2023 (LIMA): 1,000 curated ones "
    "taught a 65B model to answer; Taori et al. 2023 (Alpaca): 52,000 generated ones",
)
PRETRAIN = Advice(
    "pre-training",
    1_000_000,
    100_000_000,
    "tokens",
    "Hoffmann et al. 2022 (Chinchilla): about 20 tokens a parameter for a new model; continuing one on a domain is "
    "reported from some 100 million tokens on (Gururangan et al. 2020)",
)
PREFERENCE = Advice(
    "preference training",
    500,
    10_000,
    "pairs",
    "Tunstall et al. 2023 (Zephyr): 64,000 pairs of UltraFeedback; Ouyang et al. 2022 (InstructGPT): 33,000 prompts "
    "with ranked answers",
)
CLASSIFY = Advice(
    "classification",
    8,
    100,
    "rows of every class",
    "Tunstall et al. 2022 (SetFit): 8 a class with sentence embeddings; Zhang et al. 2021 (Revisiting few-sample BERT "
    "fine-tuning): below 1,000 rows in all, results swing with the seed",
)
TAG = Advice(
    "tagging",
    500,
    10_000,
    "sentences",
    "Tjong Kim Sang and De Meulder 2003 (CoNLL-2003): 14,041 training sentences; WNUT-17: 3,394",
)
EMBED = Advice(
    "embeddings and ranking",
    1_000,
    100_000,
    "pairs",
    "Reimers and Gurevych 2019 (Sentence-BERT): 5,749 pairs of STS-B tune a model trained on 0.9 million of NLI",
)
OF_SHAPE = {
    **dict.fromkeys(
        ("messages", "turns", "pairs", "sharegpt", "alpaca", "instances", "query-response", "prompt-completion"), SFT
    ),
    "text": PRETRAIN,
}
_OF_TASK = (
    ("preference", PREFERENCE),
    ("kto", PREFERENCE),
    ("reward", PREFERENCE),
    ("classification", CLASSIFY),
    ("tagging", TAG),
    ("embedding", EMBED),
    ("similarity", EMBED),
)


def advice_for(shape: str | None, task: str | None) -> Advice | None:
    """The rule of thumb for rows of a shape, or made for a task in the words of `luthier.data.formats.other_task`."""
    if task is not None:
        return next((advice for word, advice in _OF_TASK if word in task.lower()), None)
    return OF_SHAPE.get(shape or "")


def judged(advice: Advice, amount: int) -> str:
    """A sentence about an amount of data."""
    if amount < advice.few:
        verdict = "less than most published successes began with"
    elif amount < advice.many:
        verdict = "enough to begin with, less than published work usually has"
    else:
        verdict = "as much as published work usually has, or more"
    usual = f"{advice.few:,} to {advice.many:,}: {advice.source}"
    return f"For {advice.task}, {amount:,} {advice.unit} is {verdict} ({usual})."
