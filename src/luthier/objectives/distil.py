"""Distillation: a student learns the distribution that a teacher gives each token, not only the token of the data.

    loss = (1 - h) sum_t w_t D(teacher_t, student_t) / sum_t w_t + h sum_t w_t -log p(token_t) / sum_t w_t

with D one of `divergence`, and h the share of the data's own tokens.  Of neither model more than a few rows of logits
are held at once.

Legend: T packed tokens, R trained positions, V vocabulary, K known tokens, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from luthier.base.console import Console
from luthier.base.errors import ConfigError
from luthier.base.records import Record, Task
from luthier.data.batch import Batch, Group
from luthier.data.loader import Vary
from luthier.data.textfile import cache_root
from luthier.data.tokens import Groups
from luthier.engine.objective import Terms
from luthier.model.config import ModelConfig
from luthier.model.heads import CAUSAL
from luthier.model.load import Model, load_tokenizer
from luthier.model.logprobs import chunk_rows
from luthier.objectives.config import Distill, Sft
from luthier.objectives.divergence import divergences, sparse_divergences
from luthier.objectives.language import Language
from luthier.objectives.setting import Plainly, Setting
from luthier.objectives.teacher import Live, Stored, Teacher, ask, load_teacher


def distillation(config: Distill, setting: Setting) -> Distillation:
    """The objective for a student.

    Raises:
        ConfigError: no teacher was named, or it has another tokenizer.
        ModelError: the teacher cannot be read.
    """
    if not config.teacher:
        raise ConfigError("no teacher was named", where="--teacher", fix="Give a folder or a hub id")
    model = ModelConfig(path=config.teacher, hub=setting.model.hub, dtype=setting.model.dtype)
    if load_tokenizer(model).get_vocab() != setting.tokenizer.get_vocab():
        raise ConfigError(
            "teacher and student have different vocabularies",
            where=f"--teacher {config.teacher}",
            fix="Take a teacher of the same family; from others, learn their written answers by luthier sft",
        )
    language = Language(Sft(train_on=config.train_on), setting.renderer)
    return Distillation(config, language, Live(model), setting)


class Distillation(Plainly):
    """Training of a student on texts and chats, with what a teacher says of them.

    Args:
        language: which tokens of a record are learned.
        teacher: what is known of the teacher; set before the first step.
        setting: where the teacher is asked beforehand; None where it never is.
    """

    task: Task = "language"
    head = CAUSAL
    vary: Vary | None = None

    def __init__(self, config: Distill, language: Language, teacher: Teacher, setting: Setting | None = None):
        self.config, self.language, self.teacher, self.setting = config, language, teacher, setting

    @property
    def beside(self) -> Sequence[Model]:
        """The teacher, where it runs in every step."""
        return [self.teacher.model] if isinstance(self.teacher, Live) and self.teacher.model is not None else []

    def begin(self, sets: Sequence[Groups], console: Console) -> None:
        """Run the teacher over all sets and keep its likeliest tokens, where that is wanted; then it is not needed."""
        if self.config.top_k is None or not isinstance(self.teacher, Live):
            return
        assert self.setting is not None, "a teacher that is asked beforehand is asked in a run"
        mesh, model = self.setting.mesh, self.teacher.config
        known = [self.config.top_k, self.config.temperature, model.path, *(groups.fingerprint for groups in sets)]
        name = hashlib.blake2b(repr(known).encode(), digest_size=16).hexdigest()
        store = self.config.store
        folder = (Path(store).expanduser() if store else cache_root(self.setting.data) / "teachers") / name
        with mesh.leader_first(), console.progress("Asking the teacher") as bar:
            ask(
                lambda: load_teacher(model, mesh.device),
                (groups[index] for groups in sets for index in range(len(groups))),
                folder,
                top_k=self.config.top_k,
                temperature=self.config.temperature,
                batch_tokens=self.setting.max_length,
                progress=bar.advance,
            )
        self.teacher = Stored(folder)

    @property
    def key(self) -> str:
        """What `encode` depends on besides the record."""
        return self.language.key

    @property
    def note(self) -> str | None:
        """Whom the student learns from, and how."""
        how = {"forward": "KL(teacher | student)", "reverse": "KL(student | teacher)", "jsd": "Jensen-Shannon"}
        said = f"The student learns {self.config.teacher}'s distribution by {how[self.config.divergence]}"
        return "; ".join(part for part in (said, self.language.note) if part)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return self.language.stop_ids

    def encode(self, record: Record) -> Group | None:
        """As in language modelling."""
        return self.language.encode(record)

    def prepare(self, model: Model, step: Sequence[Batch]) -> None:
        """The teacher is loaded when it is first needed."""
        self.teacher.ready(model)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        count = batch.weights_T.sum(dtype=torch.float64)
        return {name: count for name, share in self._shares().items() if share}

    def _shares(self) -> dict[str, float]:
        return {"divergence": 1 - self.config.hard_share, "lm": self.config.hard_share}

    def sums(self, model: Model, batch: Batch) -> Terms:
        rows_R = batch.trained_R
        weights_R = batch.weights_T[rows_R]
        hidden_RD = model.hidden(batch)[rows_R]
        divergence_R, nll_R, correct_R = self._judge(model, batch, hidden_RD)
        summed = {"divergence": (divergence_R * weights_R).sum(), "lm": (nll_R * weights_R).sum()}
        shares = self._shares()
        count = weights_R.sum()
        metrics = {
            name: (value.detach(), count) for name, value in (("kl", summed["divergence"]), ("nll", summed["lm"]))
        }
        metrics["token_accuracy"] = correct_R.sum(), torch.tensor(len(rows_R), device=correct_R.device)
        return Terms({name: summed[name] * share for name, share in shares.items() if share}, metrics)

    def _judge(self, model: Model, batch: Batch, hidden_RD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Divergence, -log p of the data's token, and whether it is the likeliest.  [R] each"""
        at_once = max(1, chunk_rows(model.vocabulary, model.device) // 2)
        known = self.teacher.known(batch)
        targets_R = batch.targets_T[batch.trained_R]
        score = partial(self._score, model)
        pieces: list[tuple[Tensor, Tensor, Tensor]] = []
        for start in range(0, max(1, len(hidden_RD)), at_once):
            part = slice(start, start + at_once)
            inputs = hidden_RD[part], targets_R[part], *(rows[part] for rows in known)
            if len(hidden_RD) <= at_once:
                pieces.append(score(*inputs))
            else:
                pieces.append(checkpoint(score, *inputs, use_reentrant=False, preserve_rng_state=False))
        divergence, nll, correct = zip(*pieces, strict=True)
        return torch.cat(divergence), torch.cat(nll), torch.cat(correct)

    def _score(
        self, model: Model, hidden_RD: Tensor, targets_R: Tensor, *known: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        config = self.config
        logits_RV = model.logits(hidden_RD).float()
        nll_R = cross_entropy(logits_RV, targets_R, reduction="none")
        correct_R = logits_RV.detach().argmax(1) == targets_R
        if isinstance(self.teacher, Live):
            taught_RV = self.teacher.logits(known[0])
            width = min(logits_RV.shape[1], taught_RV.shape[1])  # vocabularies may be padded to different sizes
            divergence_R = divergences(
                logits_RV[:, :width], taught_RV[:, :width], config.divergence, config.temperature, config.beta
            )
        else:
            ids_RK, taught_RK = known
            divergence_R = sparse_divergences(
                logits_RV, ids_RK, taught_RK, config.divergence, config.temperature, config.beta
            )
        return divergence_R, nll_R, correct_R
