"""What an honest colleague would say about a run before you rely on it."""

from __future__ import annotations

from luthier.data.report import DataReport
from luthier.run.plan import RunPlan
from luthier.run.plots import Rows, curve

FEW_ROWS = 100
RISEN = 1.02
"""An evaluation loss above its best by this factor counts as risen."""


def cautions(plan: RunPlan, metrics: Rows, events: Rows, data: DataReport | None, *, complete: bool) -> list[str]:
    """One sentence for each reason to distrust a run.

    Args:
        metrics, events: rows of metrics.jsonl and events.jsonl.
        complete: whether the run came to its end.
    """
    found: list[str] = []
    if not complete:
        found.append("This run is not complete; the learning rate never reached the end of its schedule.")
    if 0 < plan.samples < FEW_ROWS:
        found.append(
            f"Only {plan.samples} training samples: the model can repeat them by heart without learning the task."
        )
    _, losses = curve(metrics, "loss")
    if len(losses) > 1 and losses[-1] >= losses[0]:
        found.append("The training loss did not fall. Check the learning rate and, with `luthier preview`, the data.")
    steps, values = curve(metrics, "eval_loss")
    if not values:
        found.append("No evaluation data: these numbers say how well the training data was fitted, nothing more.")
    elif values[-1] > RISEN * min(values):
        best = min(range(len(values)), key=values.__getitem__)
        found.append(
            f"The evaluation loss rose from {values[best]:.4f} at step {steps[best]:.0f} to {values[-1]:.4f}: the "
            "model is learning the training rows by heart. Use the best checkpoint, or fewer epochs, or more data."
        )
    return found + _data_cautions(data) + _event_cautions(events)


def _data_cautions(data: DataReport | None) -> list[str]:
    train = [part for part in data.sets if part.use == "train"] if data else []
    kept = sum(part.kept for part in train)
    found: list[str] = []
    if data is None or kept == 0:
        return found
    dropped, truncated = sum(part.rows - part.kept for part in train), sum(part.truncated for part in train)
    repeated = sum(part.exact_duplicates + part.near_duplicates for part in train)
    if dropped > 0.05 * (kept + dropped):
        found.append(f"{dropped:,} of {kept + dropped:,} rows were left out; rejected.jsonl says why.")
    if truncated > 0.01 * kept:
        found.append(
            f"{truncated:,} rows were longer than {data.max_length} tokens and lost their end: the model saw answers "
            "that break off. Raise --max_length, or drop them with --truncation_strategy drop."
        )
    if repeated > 0.05 * kept:
        found.append(f"{repeated:,} of {kept:,} rows repeat another row and weigh twice.")
    if data.overlap:
        found.append(f"{data.overlap:,} evaluation samples were also trained on; their numbers flatter.")
    return found


def _event_cautions(events: Rows) -> list[str]:
    sentences = {
        "skipped_step": "Steps skipped because loss or gradient was not a number: {}.",
        "loss_spike": "Steps with a loss far above the ones before: {}.",
        "no_trained_tokens": "There were steps without a single trained token.",
    }
    kinds = [data.get("event") for row in events if isinstance(data := row.get("data"), dict)]
    return [sentence.format(n) for kind, sentence in sentences.items() if (n := kinds.count(kind))]
