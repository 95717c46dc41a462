"""An encoder reads a source, a decoder writes a target: translation, summaries, answers (T5, BART, mT5).

    loss = sum_t w_t -log p(target_t | source, targets before) / sum_t w_t

the mean over target tokens that transformers' own models give.  Where the validation rows are judged, targets are also
written by the model and compared with those of the data.

Legend: T tokens, G groups, L tokens of the longest source, N tokens that are written or wanted at most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from luthier.base.records import Chat, Message, Record, Task
from luthier.data.batch import Batch, Group
from luthier.data.loader import Vary
from luthier.data.plain import Plain, Words
from luthier.engine.objective import Terms
from luthier.model.calling import padded, within
from luthier.model.heads import Head
from luthier.model.load import Model
from luthier.objectives.config import Seq2Seq
from luthier.objectives.findings import Findings
from luthier.objectives.predicted import token_terms
from luthier.objectives.setting import Plainly, Setting
from luthier.objectives.spans import source_and_target, start_token
from luthier.score.text import bleu, exact_match, f1, rouge

NOTHING = -1
"""Stands behind the end of what is written or wanted."""


def seq2seq(config: Seq2Seq, setting: Setting) -> Translation:
    """The objective for a model.  Raises ConfigError where it is no encoder with a decoder."""
    return Translation(config, setting.plain, start_token(setting.model))


@dataclass(frozen=True)
class Translation(Plainly):
    """Training of an encoder and a decoder on chats of which the last answer is written.

    Args:
        start: the token the decoder begins with.
    """

    config: Seq2Seq
    plain: Plain
    start: int
    task: Task = "language"
    vary: Vary | None = None

    @property
    def stop_ids(self) -> frozenset[int]:
        """The token that the tokenizer ends every target with."""
        ended: list[int] = self.plain.tokenizer(text_target="a")["input_ids"]
        return frozenset(ended[-1:])

    @property
    def head(self) -> Head:
        return Head("seq2seq")

    @property
    def key(self) -> str:
        """What `encode` depends on besides the record."""
        prefix = hashlib.sha256(self.config.prefix.encode()).hexdigest()[:16]
        return f"seq2seq:{prefix}:{self.config.max_target_length}:{self.start}:{self.plain.fingerprint}"

    @property
    def note(self) -> str | None:
        """What is read and what is written."""
        return "The encoder reads everything before the last answer, the decoder writes it; no chat template is used"

    def encode(self, record: Record) -> Group | None:
        """Source and target; None for a text, and for a chat that does not end with an answer."""
        if not isinstance(record, Chat) or record.messages[-1].role != "assistant" or not record.weight:
            return None
        *asked, answer = record.messages
        source = self._source(asked)
        target: list[int] = self.plain.tokenizer(
            text_target=answer.content, split_special_tokens=True, truncation=True, max_length=self._target_room
        )["input_ids"]
        group = source_and_target(source.ids.tolist(), target, self.start, record.weight)
        return Group(group.sequences, source.cut)

    def source(self, asked: Sequence[Message]) -> Group:
        """What is read, with nothing written yet."""
        source = self._source(asked)
        return Group(source_and_target(source.ids, [], self.start, 0.0).sequences, source.cut)

    def _source(self, asked: Sequence[Message]) -> Words:
        return self.plain.words(self.config.prefix + "\n".join(turn.content for turn in asked if turn.content))

    @property
    def _target_room(self) -> int:
        """Tokens of a target, beside the one the decoder begins with."""
        return min(self.config.max_target_length, self.plain.max_length) - 1

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"seq2seq": batch.weights_T.sum(dtype=torch.float64)}

    def sums(self, model: Model, batch: Batch) -> Terms:
        terms = token_terms("seq2seq", model, batch)
        judged = self.config.generate and not torch.is_grad_enabled()
        return replace(terms, outputs=self._written(model, batch)) if judged else terms

    def _written(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """What the model writes for each source, and what was wanted, [G, N] each; and which samples these are, [G]."""
        samples_G = torch.tensor(batch.samples, dtype=torch.int64)
        wanted_GN = torch.full((len(batch.groups), self._target_room), NOTHING, dtype=torch.int64)
        written_GN = torch.full((len(batch.groups), self.config.max_new_tokens), NOTHING, dtype=torch.int64)
        if not batch.groups:
            return {"sample": samples_G, "written": written_GN, "wanted": wanted_GN}
        made_GN = self._made(model, batch)
        written_GN[:, : made_GN.shape[1]] = made_GN
        for row, target in enumerate(batch.ids_T.split(batch.lengths)[1::2]):
            wanted_GN[row, : len(target) - 1] = target[1:].cpu()
        return {"sample": samples_G, "written": written_GN, "wanted": wanted_GN}

    def _made(self, model: Model, batch: Batch) -> Tensor:
        """int64 [G, N] on the host: what is written behind the token that the decoder begins with."""
        parts = batch.ids_T.split(batch.lengths)
        sources_GL = within(batch.lengths[::2], batch.ids_T.device)
        network: Any = model.base
        with model.arithmetic():
            made_GN: Tensor = network.generate(
                input_ids=padded(torch.cat(parts[::2]), sources_GL),
                attention_mask=sources_GL.long(),
                max_new_tokens=self.config.max_new_tokens,
                num_beams=self.config.num_beams,
                do_sample=False,
            )
        return made_GN[:, 1:].cpu()

    def write(self, model: Model, batch: Batch) -> list[str]:
        """The texts that the model writes for the sources of a batch."""
        return self._texts(self._made(model, batch))

    def findings(self, outputs: Mapping[str, Tensor]) -> dict[str, Findings]:
        """What was written for each row beside what was wanted; nothing where nothing was written."""
        if not outputs:
            return {}
        pairs = sorted(zip(outputs["sample"].tolist(), *self._pairs(outputs), strict=True))
        return {"": Findings({sample: {"reference": wanted, "response": made} for sample, made, wanted in pairs})}

    def _pairs(self, outputs: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
        """The texts that were written, and those that were wanted."""
        return self._texts(outputs["written"]), self._texts(outputs["wanted"])

    def measure(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over the set: exact match, F1 of words, ROUGE-L and BLEU-4."""
        pairs = list(zip(*self._pairs(outputs), strict=True))
        scores: dict[str, float] = {}
        for written, wanted in pairs:
            found = {
                "exact_match": exact_match(written, [wanted]),
                "f1": f1(written, [wanted]),
                "rouge-l": rouge(written, wanted)["rouge-l-f"],
                "bleu-4": bleu(written, wanted)["bleu-4"],
            }
            scores |= {name: scores.get(name, 0.0) + value / len(pairs) for name, value in found.items()}
        return scores

    def _texts(self, ids_GN: Tensor) -> list[str]:
        rows = [[token for token in row if token != NOTHING] for row in ids_GN.tolist()]
        return [text.strip() for text in self.plain.tokenizer.batch_decode(rows, skip_special_tokens=True)]
