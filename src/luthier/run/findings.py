"""Writing down what a classifier did on its validation set: predictions, scores of classes, who is taken for whom.

The files are predictions.jsonl, classes.json, confusion.csv and plots/confusion.png.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from luthier.base.records import Where
from luthier.base.rundir import RunDir, write_atomic
from luthier.data.tokens import Groups
from luthier.evaluate.pictures import matrix, verdicts
from luthier.objectives.findings import Findings
from luthier.objectives.setting import Whole

PREDICTIONS, CLASSES, CONFUSION = "predictions.jsonl", "classes.json", "confusion.csv"
_DRAWN = 100
"""Most classes of a picture; beyond, nothing could be read."""


@dataclass(frozen=True)
class Judged:
    """What was judged: the samples, and where the row of each stands."""

    groups: Groups
    where: Callable[[int], Where | None]


def write_findings(
    run: RunDir, objective: Whole, outputs: Mapping[str, Tensor], judged: Judged, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Write the findings of the best evaluation, if the objective has any; of several tasks, each to files of its own.

    Raises:
        RunError: a file cannot be written.
    """
    for task, found in objective.findings(outputs).items():
        _write(run, f"{task}-" if task else "", found, judged, tokenizer)


def _write(run: RunDir, task: str, found: Findings, judged: Judged, tokenizer: PreTrainedTokenizerFast) -> None:
    lines: list[bytes] = []
    for sample, row in found.predictions.items():
        text = tokenizer.decode(judged.groups[sample].sequences[0].ids.tolist(), skip_special_tokens=True)
        where = judged.where(sample)
        place = {} if where is None else {"file": where.file, "line": where.line}
        lines.append(orjson.dumps({**place, "text": text, **row}, option=orjson.OPT_APPEND_NEWLINE))
    write_atomic(run.file(task + PREDICTIONS), b"".join(lines))
    if not found.classes:
        return
    written: dict[str, Any] = {
        "classes": [asdict(row) for row in found.classes],
        "averages": [asdict(row) for row in found.averages],
        "confusion": None,
    }
    names = [row.name for row in found.classes]
    if found.confusion_CC is not None:
        table: NDArray[np.int64] = found.confusion_CC
        written["confusion"] = table.tolist()
        if len(table) <= _DRAWN:
            write_atomic(run.file(f"plots/{task}confusion.png"), matrix(table, names))
        run.write_text(task + CONFUSION, _csv(["wanted \\ predicted", *names], names, table))
    if found.verdicts_C4 is not None:
        kinds = ["found rightly", "found wrongly", "missed", "left rightly"]
        if len(names) <= _DRAWN:
            write_atomic(run.file(f"plots/{task}confusion.png"), verdicts(found.verdicts_C4, names, kinds))
        run.write_text(task + CONFUSION, _csv(["class", *kinds], names, found.verdicts_C4))
    write_atomic(run.file(task + CLASSES), orjson.dumps(written))


def _csv(header: Sequence[str], names: Sequence[str], counts: NDArray[np.int64]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
    return text.getvalue()
