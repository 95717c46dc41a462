"""Classification of words: named entities in any scheme, parts of speech.

    loss = sum over words of w c_y -log p(y) / sum of w c_y

A word's tag is predicted at its first piece; its other pieces and control tokens are not trained.  This is the loss of
transformers' token classification heads with -100 everywhere else.

Legend: R trained positions (words), C tags.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from luthier.base.errors import DataError
from luthier.base.records import BadRow, Fault, Json, Record, Tagged, Task
from luthier.data.batch import Batch, Group, Tokens
from luthier.data.loader import Vary
from luthier.data.plain import Plain
from luthier.data.survey import labels_of
from luthier.engine.objective import Terms
from luthier.model.heads import Head, own_labels
from luthier.model.load import Model
from luthier.objectives.config import TokenCls
from luthier.objectives.findings import Findings, class_rows
from luthier.objectives.setting import Plainly, Setting
from luthier.objectives.weights import class_weights
from luthier.score import entities


def tagging(config: TokenCls, setting: Setting) -> Tagging:
    """The objective for a set: its tags are surveyed where they were not named.

    Raises:
        DataError: a set cannot be opened, has no tag, or one that was not named.
    """
    found = labels_of(record.tags for record in setting.records("tagging") if isinstance(record, Tagged)).counts
    own = own_labels(setting.model)
    names = config.labels or (own if own and set(found) <= set(own) else tuple(_ordered(found)))
    unknown = sorted(set(entities.named(tuple(found), names)) - set(names))
    if unknown:
        raise DataError(
            f"{len(unknown)} tags of the data are not among those named: {', '.join(unknown[:5])}",
            where="--labels",
            fix="Name them too, or leave --labels out; numbers in the data count through the names, from 0 on",
            code="unknown_label",
        )
    if len(names) < 2:
        what = f"there is only one tag, {names[0]!r}" if names else "there is no tag" + setting.first_fault("tagging")
        raise DataError(what, code="no_tags", fix="Rows need tokens and as many tags, of at least two kinds")
    return Tagging(config, names, setting.plain, _class_weights(config, setting, names))


def _class_weights(config: TokenCls, setting: Setting, names: tuple[str, ...]) -> Tensor | None:
    """weights_C, or None where all tags count the same."""

    def survey() -> tuple[Mapping[str, int], int]:
        counts = Counter[str]()
        for record in setting.records("tagging", training=True):
            counts.update(entities.named(record.tags, names) if isinstance(record, Tagged) else ())
        return counts, counts.total()

    return class_weights(config.class_weights, names, survey, several=False)


def _ordered(tags: Mapping[str, int]) -> list[str]:
    """O first, then by type and letter: what people expect to read."""
    return sorted(tags, key=lambda tag: (tag != "O", tag.partition("-")[2], tag))


@dataclass(frozen=True)
class Tagging(Plainly):
    """Tags of words."""

    config: TokenCls
    labels: tuple[str, ...]
    plain: Plain
    weights_C: Tensor | None = None
    task: Task = "tagging"
    vary: Vary | None = None
    stop_ids: frozenset[int] = frozenset()

    @property
    def head(self) -> Head:
        return Head("token", self.labels)

    @cached_property
    def scheme(self) -> entities.Scheme:
        """What the tags say of entities."""
        return entities.scheme_of(self.labels)

    @property
    def key(self) -> str:
        """What `encode` depends on besides the record."""
        names = hashlib.sha256("\0".join(self.labels).encode()).hexdigest()[:16]
        return f"token_cls:4:{names}:{self.plain.fingerprint}"

    @property
    def note(self) -> str | None:
        """Which tags are learned."""
        if self.scheme == "none":
            told = f"Each word is given one of {len(self.labels)} tags: {', '.join(self.labels[:8])}"
            numbers = all(tag.isdecimal() for tag in self.labels)
            how = "; numbers name no entities: --labels O B-PER I-PER ... names them in order, to score these"
            return told + (how if numbers else "")
        kinds = sorted({kind for kind in (tag.partition("-")[2] for tag in self.labels) if kind})
        return f"Entities are found ({self.scheme}): {', '.join(kinds[:12])}" + (" ..." if len(kinds) > 12 else "")

    def encode(self, record: Record) -> Group | None:
        """One sequence with the tag of each word at its first piece.

        Raises:
            BadRow: `unknown_label`.
        """
        assert isinstance(record, Tagged), "rows are read for the task of tagging"
        tags = entities.named(record.tags, self.labels)
        unknown = [tag for tag in tags if tag not in self._numbers]
        if unknown:
            raise BadRow(Fault("unknown_label", record.where, f"the tag {unknown[0]!r} is none of the known", "tags"))
        group = self._group(record, [self._numbers[tag] for tag in tags])
        return group if group.sequences[0].weights.any() else None

    def untagged(self, record: Tagged) -> Group:
        """The sequence of words whose tags do not matter."""
        return self._group(record, [0] * len(record.tokens))

    def _group(self, record: Tagged, numbers: Sequence[int]) -> Group:
        pieces = words_of(self.plain, record.tokens)
        weights = np.zeros(len(pieces.ids), dtype=np.float32)
        targets = np.zeros(len(pieces.ids), dtype=np.int32)
        for position, word in enumerate(pieces.firsts):
            if word is not None:
                weights[position] = record.weight
                targets[position] = numbers[word]
        return Group((Tokens(pieces.ids, weights, targets, pieces.segments),), pieces.cut)

    def answer(self, tags: Sequence[str], record: Tagged) -> dict[str, Json]:
        """What is predicted for one row: a tag for each word, and the entities they make: type, first and last word.

        Where the row has a text, also where in it they lie.
        """
        found: dict[str, Json] = {"tags": list[Json](tags)}
        if self.scheme != "none":
            spans = entities.entities(tags)
            found["entities"] = [{"type": kind, "first": first, "last": last} for kind, first, last in spans]
            places = record.places
            if places:
                ends = [(kind, places[first][0], places[last][1]) for kind, first, last in spans]
                found["spans"] = [
                    {"start": start, "end": end, "label": kind, "text": record.text[start:end]}
                    for kind, start, end in ends
                ]
        return found

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {tag: number for number, tag in enumerate(self.labels)}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"tagging": self._weights(batch).sum(dtype=torch.float64)}

    def _weights(self, batch: Batch) -> Tensor:
        """weights_R: the word's own, times that of its tag."""
        weights_R = batch.weights_T[batch.trained_R]
        if self.weights_C is None:
            return weights_R
        return weights_R * self.weights_C.to(weights_R.device)[batch.targets_T[batch.trained_R]]

    def sums(self, model: Model, batch: Batch) -> Terms:
        scores_RC = model.scores(batch)
        targets_R, weights_R = batch.targets_T[batch.trained_R], batch.weights_T[batch.trained_R]
        weights_C = None if self.weights_C is None else self.weights_C.to(scores_RC.device)
        losses_R = cross_entropy(
            scores_RC, targets_R, weights_C, reduction="none", label_smoothing=self.config.label_smoothing
        )
        predicted_R = scores_RC.argmax(1)
        accuracy = (predicted_R == targets_R).sum(), torch.tensor(len(targets_R), device=targets_R.device)
        lengths_S = torch.tensor(batch.lengths, dtype=torch.int64)
        samples_T = torch.repeat_interleave(
            torch.tensor(batch.samples, dtype=torch.int64), lengths_S, output_size=sum(batch.lengths)
        )
        outputs = {
            "sample": samples_T[batch.trained_R.cpu()],
            "predicted": predicted_R,
            "reference": targets_R,
        }
        loss = (losses_R * weights_R).sum() + model.anchor()
        return Terms({"tagging": loss}, {"token_accuracy": accuracy}, outputs)

    def measure(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        if self.scheme == "none":
            return {}
        return entities.score(*self.sequences(outputs))

    def findings(self, outputs: Mapping[str, Tensor]) -> dict[str, Findings]:
        """Each row's tags, and the scores of each type of entity; nothing before anything was judged."""
        if not outputs:
            return {}
        predicted, wanted = self.sequences(outputs)
        samples: list[int] = sorted(set(outputs["sample"].tolist()))
        rows: dict[int, dict[str, Json]] = {
            sample: {"reference": list[Json](theirs), "tags": list[Json](mine)}
            for sample, mine, theirs in zip(samples, predicted, wanted, strict=True)
        }
        each = entities.by_type(predicted, wanted) if self.scheme != "none" else {}
        return {"": Findings(rows, *class_rows(list(each), entities.counted(each)))}

    def sequences(self, outputs: Mapping[str, Tensor]) -> tuple[list[list[str]], list[list[str]]]:
        """Tags predicted and wanted, of each sequence in the order of the set."""
        order = torch.argsort(outputs["sample"], stable=True)
        counts = torch.unique_consecutive(outputs["sample"][order], return_counts=True)[1].tolist()
        predicted, wanted = (
            [[self.labels[number] for number in part.tolist()] for part in outputs[name][order].split(counts)]
            for name in ("predicted", "reference")
        )
        return predicted, wanted


@dataclass(frozen=True, slots=True)
class Pieces:
    """Words as a tokenizer cuts them."""

    ids: Any
    """int32 [T]"""
    segments: Any
    """int8 [T], where the model tells two texts apart"""
    firsts: list[int | None]
    """The word that begins at each position, if one does."""
    cut: bool


def words_of(plain: Plain, words: Sequence[str]) -> Pieces:
    """Cut words into pieces that never reach over a word's end."""
    tokenizer, limit = plain.tokenizer, plain.max_length if plain.overlong == "truncate" else None
    spaced = [f" {word}" if place and _apart(words[place - 1], word) else word for place, word in enumerate(words)]
    encoded = tokenizer(
        spaced if _keeps_spaces(tokenizer) else list(words),
        is_split_into_words=True,
        split_special_tokens=True,
        truncation=limit is not None,
        max_length=limit,
        verbose=False,
    )
    owners = encoded.word_ids()
    firsts = [word if place == 0 or owners[place - 1] != word else None for place, word in enumerate(owners)]
    segments = np.array(encoded["token_type_ids"], np.int8) if "token_type_ids" in encoded else None
    cut = bool(encoded.encodings and encoded.encodings[0].overflowing)
    return Pieces(np.array(encoded["input_ids"], dtype=np.int32), segments, firsts, cut)


def _keeps_spaces(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a space in front of a word is part of its first piece, as in byte-level vocabularies."""
    bare, spaced = (tokenizer([text], is_split_into_words=True, add_special_tokens=False) for text in ("the", " the"))
    return bare["input_ids"] != spaced["input_ids"] and len(spaced["input_ids"]) == len(bare["input_ids"])


def _apart(left: str, right: str) -> bool:
    """Whether a space stands between two words: not beside a Chinese character."""
    return not any("\u3000" <= character <= "\u9fff" or character > "\ufeff" for character in (left[-1:], right[:1]))
