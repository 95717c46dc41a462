"""Reranking: how well each text answers a query, by a model that reads both together.

    pointwise  loss = sum_s w_s BCE(score_s, label_s) / sum_s w_s
    listwise   loss = sum_q w_q -sum_s target_s log softmax(scores of q)_s / sum_q w_q

with target the labels of the query's texts, divided by their sum.  A cross-encoder's score is that of its one class; a
language model's is the logit of yes less that of no after a prompt (as Qwen3-Reranker's), so that BCE on it is the
cross-entropy of the two words.

Legend: S sequences, G groups (queries), D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from luthier.base.console import Console
from luthier.base.errors import ConfigError, DataError
from luthier.base.records import BadRow, Fault, Message, Record, Similar, Task
from luthier.data.batch import Batch, Group, whole
from luthier.data.plain import Plain, Words
from luthier.data.tokens import Groups
from luthier.engine.objective import Terms
from luthier.model.heads import Head
from luthier.model.load import Model
from luthier.objectives.config import GenerativeRerank, Rerank
from luthier.objectives.setting import Plainly, Setting
from luthier.score.ranking import Ranked, average_precision, ndcg, reciprocal_rank

SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the "
    'answer can only be "{yes}" or "{no}".'
)


def reranking(config: Rerank, setting: Setting) -> Reranking:
    """The objective for a cross-encoder."""
    return Reranking(config.loss, config.negatives, CrossEncoder(setting.plain))


def yes_or_no(config: GenerativeRerank, setting: Setting) -> Reranking:
    """The objective for a language model.

    Raises:
        ConfigError: yes or no is more than one token, or the prompt leaves no room for a text.
    """
    yes = _one_token(setting, config.positive_token, "--positive_token")
    no = _one_token(setting, config.negative_token, "--negative_token")
    system = SYSTEM.format(yes=config.positive_token, no=config.negative_token)
    renderer = setting.renderer
    messages = (Message("system", system), Message("user", f"<Instruct>: {config.instruction}\n{_HOLE}"))
    whole: Any = setting.tokenizer.decode(renderer.prompt(messages), skip_special_tokens=False)
    before, _, after = whole.partition(_HOLE)
    if setting.plain.framed(before, _HOLE, after)[1]:
        raise ConfigError(
            f"the prompt around query and text does not fit into {setting.max_length} tokens",
            where="--max_length",
            fix="Raise it, or give a shorter --instruction",
        )
    return Reranking(config.loss, config.negatives, YesOrNo(setting.plain, before, after, yes, no))


def _one_token(setting: Setting, word: str, flag: str) -> int:
    ids: list[int] = setting.tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        others = (word.capitalize(), f" {word}")
        near = [other for other in others if len(setting.tokenizer(other, add_special_tokens=False)["input_ids"]) == 1]
        fix = f"Give a word of one token{f', as {near[0]!r}' if near else ''}"
        raise ConfigError(f"{word!r} is {len(ids)} tokens", where=flag, fix=fix)
    return ids[0]


_HOLE = "<Query>: 0\n<Document>: 0"
"""Where query and text come into the prompt."""


class Judge(Protocol):
    """How a model is asked about one text, and how it answers."""

    @property
    def plain(self) -> Plain:
        """Texts as tokens."""
        ...

    @property
    def head(self) -> Head: ...
    @property
    def key(self) -> str:
        """What `words` depends on."""
        ...

    def words(self, query: str, text: str) -> Words:
        """The tokens that ask."""
        ...

    def scores(self, model: Model, batch: Batch) -> Tensor:
        """scores_S, logits, float32."""
        ...


@dataclass(frozen=True)
class CrossEncoder:
    """A model with one score for each pair of texts."""

    plain: Plain

    @property
    def head(self) -> Head:
        return Head("sequence", ("LABEL_0",), "regression")

    @property
    def key(self) -> str:
        return self.plain.fingerprint

    def words(self, query: str, text: str) -> Words:
        return self.plain.words(query, text)

    def scores(self, model: Model, batch: Batch) -> Tensor:
        return model.scores(batch)[:, 0]


@dataclass(frozen=True)
class YesOrNo:
    """A language model that goes on with yes or no.

    Args:
        before, after: text around query and text.
        yes, no: tokens of the two words.
    """

    plain: Plain
    before: str
    after: str
    yes: int
    no: int

    @property
    def head(self) -> Head:
        return Head("causal")

    @property
    def key(self) -> str:
        prompt = hashlib.sha256(f"{self.before}\0{self.after}".encode()).hexdigest()[:16]
        return f"{prompt}:{self.plain.fingerprint}"

    def words(self, query: str, text: str) -> Words:
        """The prompt whole; of the text what fits."""
        ids, cut = self.plain.framed(self.before, f"<Query>: {query}\n<Document>: {text}", self.after)
        return Words(ids, None, cut)

    def scores(self, model: Model, batch: Batch) -> Tensor:
        ends_S = torch.tensor([end - 1 for end in batch.offsets[1:]], dtype=torch.int64, device=batch.ids_T.device)
        logits_SV = model.logits(model.hidden(batch)[ends_S])
        return (logits_SV[:, self.yes] - logits_SV[:, self.no]).float()


@dataclass(frozen=True)
class Reranking(Plainly):
    """Training of a model that scores texts for a query."""

    loss: Literal["pointwise", "listwise"]
    negatives: int | None
    judge: Judge
    task: Task = "similarity"
    stop_ids: frozenset[int] = frozenset()

    @property
    def head(self) -> Head:
        return self.judge.head

    @property
    def key(self) -> str:
        """What `encode` depends on besides the record."""
        return f"reranking:2:{self.loss}:{self.judge.key}"

    @property
    def note(self) -> str | None:
        """Which loss is taken."""
        return f"Texts are scored for their query, with a {self.loss} loss"

    def encode(self, record: Record) -> Group | None:
        """The query with each of its texts, those that answer it first; None where the row weighs nothing.

        Raises:
            BadRow: `bad_score`, one that is no probability; of one list, `no_positive` and `no_negative`.
        """
        assert isinstance(record, Similar), "rows are read for the task of similarity"
        score = 1.0 if record.score is None else record.score
        texts = [(text, score) for text in record.positives] + [(text, 0.0) for text in record.negatives]
        if not 0 <= score <= 1:
            message = f"the score of a text that may answer lies between 0 and 1, this is {score:g}"
            raise BadRow(Fault("bad_score", record.where, message, "score"))
        if self.loss == "listwise" and not (record.positives and score):
            raise BadRow(Fault("no_positive", record.where, "listwise needs a text that answers the query"))
        if self.loss == "listwise" and len(texts) < 2:
            message = "listwise compares a query's texts, and this has one; use pointwise, or add texts under neg"
            raise BadRow(Fault("no_negative", record.where, message))
        if not record.weight:
            return None
        words = [(self.judge.words(record.query, text), label) for text, label in texts]
        return Group(
            tuple(whole(word.ids, (label,), record.weight, word.segments) for word, label in words),
            any(word.cut for word, _ in words),
        )

    def begin(self, sets: Sequence[Groups], console: Console) -> None:
        """Look whether there is anything to tell apart.

        Raises:
            DataError: code `one_label`; every text for training is labelled alike, so that one score for all is right.
        """
        train, *held = sets
        labels = _first_labels(train)
        if len(labels) == 1:
            raise DataError(
                f"all texts are labelled alike, with {labels.pop():g}, and a model that gives them one score is right",
                code="one_label",
                fix="Give rows texts that answer and texts that do not, under pos and neg, or pairs of several scores",
            )
        if any(len(groups) and len(_first_labels(groups)) == 1 for groups in held):
            console.warn("all validation texts are labelled alike: accuracy there says little, and nothing is ranked")

    def vary(self, group: Group, rng: np.random.Generator) -> Group:
        """One text that answers, and as many that do not as are wanted."""
        if self.negatives is None:
            return group
        good = [tokens for tokens in group.sequences if tokens.values is not None and tokens.values[0] > 0]
        bad = [tokens for tokens in group.sequences if tokens.values is not None and tokens.values[0] <= 0]
        chosen = [good[int(rng.integers(len(good)))]] if good else []
        places = rng.choice(len(bad), min(len(bad), self.negatives), replace=False) if bad else []
        return Group((*chosen, *(bad[int(place)] for place in places)))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        weights_S = batch.weights_S.double()
        if self.loss == "listwise":
            weights_S = weights_S[_firsts(batch)]
        return {self.loss: weights_S.sum()}

    def sums(self, model: Model, batch: Batch) -> Terms:
        scores_S = self.judge.scores(model, batch)
        labels_S = batch.values_SK[:, 0] if batch.lengths else scores_S.new_zeros(0)
        if self.loss == "pointwise":
            losses_S = binary_cross_entropy_with_logits(scores_S, labels_S, reduction="none")
            loss = (losses_S * batch.weights_S).sum()
        else:
            loss = (listwise(scores_S, labels_S, batch.groups) * batch.weights_S[_firsts(batch)]).sum()
        sizes_G = torch.tensor(batch.groups, dtype=torch.int64)
        samples_S = torch.repeat_interleave(
            torch.tensor(batch.samples, dtype=torch.int64), sizes_G, output_size=sum(batch.groups)
        )
        right = ((scores_S > 0) == (labels_S > 0.5)).sum(), torch.tensor(len(scores_S), device=scores_S.device)
        outputs = {"sample": samples_S, "scores": scores_S.detach(), "labels": labels_S}
        metrics = {"accuracy": right} if self.loss == "pointwise" else {}
        return Terms({self.loss: loss + model.anchor()}, metrics, outputs)

    def measure(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        """How the texts of each query rank, over the queries with texts of both kinds."""
        by_query: dict[int, tuple[dict[str, float], dict[str, float]]] = {}
        rows = zip(outputs["sample"].tolist(), outputs["scores"].tolist(), outputs["labels"].tolist(), strict=True)
        for number, (sample, score, label) in enumerate(rows):
            scores, labels = by_query.setdefault(sample, ({}, {}))
            # Of equal scores the later text comes first, and texts that answer come first in their row.
            scores[f"{number:012d}"], labels[f"{number:012d}"] = score, label
        ranked = [
            Ranked.of(scores, labels)
            for scores, labels in by_query.values()
            if any(label > 0 for label in labels.values()) and any(label <= 0 for label in labels.values())
        ]
        if not ranked:
            return {}
        return {
            "ndcg@10": float(np.mean([ndcg(one, 10) for one in ranked])),
            "mrr@10": float(np.mean([reciprocal_rank(one, 10) for one in ranked])),
            "map": float(np.mean([average_precision(one) for one in ranked])),
        }


def listwise(scores_S: Tensor, labels_S: Tensor, groups: tuple[int, ...]) -> Tensor:
    """Cross-entropy of each query's scores with its labels divided by their sum.  [G]"""
    if not groups:
        return scores_S.sum()[None][:0]
    sizes_G = torch.tensor(groups, device=scores_S.device)
    within_GK = torch.arange(max(groups), device=scores_S.device) < sizes_G[:, None]
    scores_GK = torch.full_like(within_GK, -torch.inf, dtype=scores_S.dtype).masked_scatter(within_GK, scores_S)
    targets_GK = torch.zeros_like(scores_GK).masked_scatter(within_GK, labels_S.to(scores_S.dtype))
    targets_GK = targets_GK / targets_GK.sum(1, keepdim=True)
    logprobs_GK = scores_GK.log_softmax(1).masked_fill(~within_GK, 0.0)
    return -(targets_GK * logprobs_GK).sum(1)


def _first_labels(groups: Groups) -> set[float]:
    """Two different labels, if there are, those that come first."""
    found: set[float] = set()
    for number in range(len(groups)):
        found |= {float(tokens.values[0]) for tokens in groups[number].sequences if tokens.values is not None}
        if len(found) > 1:
            break
    return found


def _firsts(batch: Batch) -> Tensor:
    """The first sequence of each group.  [G]"""
    starts = np.cumsum([0, *batch.groups])[:-1]
    return torch.tensor(starts, dtype=torch.int64, device=batch.ids_T.device)
