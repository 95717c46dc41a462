"""Classification of whole sequences: one class, several classes, or a number to predict.

    one class        loss = sum_s w_s c_{y_s} -log p(y_s) / sum_s w_s c_{y_s}
    several classes  loss = sum_s w_s sum_k BCE(score_sk, y_sk) / (C sum_s w_s)
    a number         loss = sum_s w_s sum_k (score_sk - y_sk)^2 / (K sum_s w_s)

with w the rows' weights and c those of the classes.  These are the losses of transformers' sequence classification
heads; class weights and label smoothing are those of torch's cross_entropy, in BCE they weigh what is to be found
(pos_weight).  Focal loss multiplies each term by (1 - p)^gamma (Lin et al. 2017).

Legend: S sequences, C classes, K values of a sequence.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from luthier.base.records import BadRow, Chat, Fault, Json, Label, Labelled, Record, Task
from luthier.data.batch import Batch, Group, whole
from luthier.data.loader import Vary
from luthier.data.plain import Plain, Words
from luthier.data.render import Renderer
from luthier.data.survey import names_of
from luthier.engine.objective import Terms
from luthier.model.heads import Head
from luthier.model.load import Model
from luthier.objectives.config import SeqCls
from luthier.objectives.findings import Findings, class_rows
from luthier.objectives.setting import Plainly
from luthier.score.labels import Flags, classified, confusion, count, regressed

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]


@dataclass(frozen=True)
class Classification(Plainly):
    """Classification of texts, pairs of texts and conversations."""

    config: SeqCls
    labels: tuple[str, ...]
    problem: Problem
    weights_C: Tensor | None
    plain: Plain
    chats: Renderer | None
    """How conversations are written, where the tokenizer has a template."""
    task: Task = "classification"
    vary: Vary | None = None
    stop_ids: frozenset[int] = frozenset()

    @property
    def head(self) -> Head:
        return Head("sequence", self.labels, self.problem)

    @property
    def key(self) -> str:
        """What `encode` depends on besides the record."""
        names = hashlib.sha256("\0".join(self.labels).encode()).hexdigest()[:16]
        chats = self.chats.fingerprint if self.chats else ""
        return f"seq_cls:{self.problem}:{names}:{self.plain.fingerprint}:{chats}"

    @property
    def note(self) -> str | None:
        """Which classes are learned."""
        if self.problem == "regression":
            return "A number is predicted for each text (regression)"
        kind = "one of" if self.problem == "single_label_classification" else "any of"
        shown = ", ".join(self.labels[:8]) + (" ..." if len(self.labels) > 8 else "")
        return f"Each text is given {kind} {len(self.labels)} classes: {shown}"

    def encode(self, record: Record) -> Group | None:
        """One sequence with the numbers of its classes, or its value.

        Raises:
            BadRow: `unknown_label`, `several_labels`, `not_a_number`, or what the template says of a conversation.
        """
        assert isinstance(record, Labelled), "rows are read for the task of classification"
        values, words = self._values(record), self.words(record)
        return Group((whole(words.ids, values, record.weight, words.segments),), words.cut) if record.weight else None

    def words(self, record: Labelled) -> Words:
        """The tokens of what is classified."""
        if record.messages and self.chats is not None:
            tokens = self.chats.chat(Chat(record.messages, record.where), train_on="all")
            return Words(tokens.ids, None, False)
        return self.plain.words(record.text, record.pair)

    def _values(self, record: Labelled) -> list[float]:
        if self.problem == "regression":
            return [_number(record)]
        names = names_of(record.label)
        if self.problem == "single_label_classification" and len(names) != 1:
            raise BadRow(Fault("several_labels", record.where, f"{len(names)} labels where one is expected", "label"))
        unknown = [name for name in names if name not in self._numbers]
        if unknown:
            raise BadRow(
                Fault("unknown_label", record.where, f"the label {unknown[0]!r} is none of the known", "label")
            )
        return [float(self._numbers[name]) for name in names]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.labels)}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        weights_S = batch.weights_S
        if self.problem == "single_label_classification" and self.weights_C is not None:
            weights_S = weights_S * self.weights_C.to(weights_S.device)[self._classes(batch)]
        wide = len(self.labels) if self.problem == "multi_label_classification" else 1
        return {"classification": weights_S.sum(dtype=torch.float64) * wide}

    def sums(self, model: Model, batch: Batch) -> Terms:
        scores_SC = model.scores(batch)
        losses_S, right_S, references = self._judge(scores_SC, batch)
        loss = (losses_S * batch.weights_S).sum() + model.anchor()
        metrics: dict[str, tuple[Tensor, Tensor]] = {}
        if right_S is not None:
            metrics["accuracy"] = right_S.sum(), torch.tensor(len(right_S), device=right_S.device)
        samples_S = torch.tensor(batch.samples, dtype=torch.int64)
        outputs = {"sample": samples_S, "scores": scores_SC.detach(), "reference": references}
        return Terms({"classification": loss}, metrics, outputs)

    def measure(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        scores_SC, references = outputs["scores"].double().numpy(), outputs["reference"].numpy()
        if self.problem == "regression":
            return regressed(scores_SC[:, 0], references[:, 0])
        return classified(*self.flags(outputs))

    def flags(self, outputs: Mapping[str, Tensor]) -> tuple[Flags, Flags]:
        """Which classes were predicted and which were wanted, each bool [S, C]."""
        scores_SC, references = outputs["scores"].double().numpy(), outputs["reference"].numpy()
        if self.problem == "single_label_classification":
            one = np.eye(len(self.labels), dtype=bool)
            return one[scores_SC.argmax(1)], one[references]
        return scores_SC > self._threshold, references > 0

    def findings(self, outputs: Mapping[str, Tensor]) -> dict[str, Findings]:
        """Each row's prediction, and where there are classes the scores of each; nothing before anything was judged."""
        if not outputs:
            return {}
        answers = [self.answer(scores_C) for scores_C in outputs["scores"]]
        if self.problem == "regression":
            numbers: list[list[float]] = outputs["reference"].tolist()
            wanted: list[Json] = [round(values[0], 6) for values in numbers]
            return {"": Findings(_joined(outputs, answers, wanted))}
        hits_SC, wanted_SC = self.flags(outputs)
        counts = count(hits_SC, wanted_SC)
        classes, averages = class_rows(self.labels, counts)
        names = [[self.labels[n] for n in np.flatnonzero(row)] for row in wanted_SC]
        if self.problem == "multi_label_classification":
            wrong, missed = counts.predicted - counts.hits, counts.wanted - counts.hits
            left = len(hits_SC) - counts.hits - wrong - missed
            verdicts_C4 = np.stack([counts.hits, wrong, missed, left], axis=1)
            rows = _joined(outputs, answers, [list[Json](row) for row in names])
            return {"": Findings(rows, classes, averages, verdicts_C4=verdicts_C4)}
        table = confusion(hits_SC.argmax(1), wanted_SC.argmax(1), len(self.labels))
        return {"": Findings(_joined(outputs, answers, [row[0] for row in names]), classes, averages, table)}

    @property
    def _threshold(self) -> float:
        """The score from which on a class is predicted."""
        return math.log(self.config.threshold / (1 - self.config.threshold))

    def answer(self, scores_C: Tensor) -> dict[str, Json]:
        """What is predicted for one row: a label with the probability of each, several, or a value."""
        if self.problem == "regression":
            return {"value": round(float(scores_C[0]), 6)}
        several = self.problem == "multi_label_classification"
        shares: list[float] = (scores_C.double().sigmoid() if several else scores_C.double().softmax(0)).tolist()
        probabilities: dict[str, Json] = {
            name: round(share, 6) for name, share in zip(self.labels, shares, strict=True)
        }
        if several:
            chosen = [name for name, share in zip(self.labels, shares, strict=True) if share > self.config.threshold]
            return {"labels": list[Json](chosen), "probabilities": probabilities}
        return {"label": self.labels[int(scores_C.argmax())], "probabilities": probabilities}

    def _classes(self, batch: Batch) -> Tensor:
        """classes_S, int64."""
        return batch.values_SK[:, 0].long() if batch.lengths else torch.zeros(0, dtype=torch.int64)

    def _judge(self, scores_SC: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor]:
        """losses_S, whether each row is all right, and what its scores were to be."""
        if self.problem == "regression":
            values_SK = batch.values_SK if batch.lengths else scores_SC.new_zeros(0, 1)
            return (scores_SC - values_SK).square().mean(1), None, values_SK
        if self.problem == "multi_label_classification":
            return self._several(scores_SC, batch)
        classes_S = self._classes(batch).to(scores_SC.device)
        weights_C = None if self.weights_C is None else self.weights_C.to(scores_SC.device)
        losses_S = cross_entropy(
            scores_SC, classes_S, weights_C, reduction="none", label_smoothing=self.config.label_smoothing
        )
        if self.config.focal_gamma:
            right_S = scores_SC.softmax(1).gather(1, classes_S[:, None])[:, 0]
            losses_S = losses_S * (1 - right_S) ** self.config.focal_gamma
        return losses_S, scores_SC.argmax(1) == classes_S, classes_S

    def _several(self, scores_SC: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        wanted_SC = torch.zeros_like(scores_SC)
        if batch.values_N is not None:
            counts_S = torch.tensor(batch.value_counts)
            rows = torch.repeat_interleave(counts_S, output_size=sum(batch.value_counts)).to(scores_SC.device)
            wanted_SC[rows, batch.values_N.long()] = 1.0
        smooth = self.config.label_smoothing
        losses_SC = binary_cross_entropy_with_logits(
            scores_SC,
            wanted_SC * (1 - smooth) + smooth / 2,
            pos_weight=None if self.weights_C is None else self.weights_C.to(scores_SC.device),
            reduction="none",
        )
        if self.config.focal_gamma:
            share_SC = scores_SC.sigmoid()
            wrong_SC = wanted_SC * (1 - share_SC) + (1 - wanted_SC) * share_SC
            losses_SC = losses_SC * wrong_SC**self.config.focal_gamma
        hits_SC = scores_SC.sigmoid() > self.config.threshold
        return losses_SC.sum(1), (hits_SC == (wanted_SC > 0)).all(1), wanted_SC


def _joined(
    outputs: Mapping[str, Tensor], answers: list[dict[str, Json]], wanted: list[Json]
) -> dict[int, dict[str, Json]]:
    """By sample, in the order of the set."""
    samples: list[int] = outputs["sample"].tolist()
    rows = {sample: {"reference": ref, **answer} for sample, answer, ref in zip(samples, answers, wanted, strict=True)}
    return dict(sorted(rows.items()))


def _number(record: Labelled) -> float:
    label: Label = record.label
    try:
        if isinstance(label, tuple):
            raise ValueError
        return float(label)
    except ValueError:
        fault = Fault("not_a_number", record.where, f"a number to predict is expected, got {label!r}", "label")
        raise BadRow(fault) from None
