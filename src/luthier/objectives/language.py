"""Language modelling: pre-training, continued pre-training and SFT are one loss with different weights.

    loss = sum_t weight_t * -log p(token_t | tokens before it) / sum_t weight_t

over every token of the optimizer step.  With weights of 0 and 1 this is the mean over trained tokens that TRL and
transformers compute; a token of weight 3 counts as if its row stood three times in the step.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from luthier.base.records import Chat, Record, Task, Text
from luthier.data.batch import Batch, Group
from luthier.data.loader import Vary
from luthier.data.render import Renderer
from luthier.engine.objective import Terms
from luthier.model.heads import CAUSAL
from luthier.model.load import Model
from luthier.objectives.config import Pretrain, Sft
from luthier.objectives.predicted import token_terms
from luthier.objectives.setting import Plainly


class Language(Plainly):
    """Next-token prediction on texts and chats.

    Args:
        config: pretrain trains every token; sft the assistant's, unless a message's own weight says otherwise.
    """

    def __init__(self, config: Pretrain | Sft, renderer: Renderer):
        self.renderer = renderer
        self.train_on: Literal["assistant", "last", "all"] = "all" if isinstance(config, Pretrain) else config.train_on

    task: Task = "language"
    head = CAUSAL
    vary: Vary | None = None

    @property
    def note(self) -> str | None:
        """What a user should know about template and tokenizer."""
        return self.renderer.note

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return self.renderer.stop_ids

    @property
    def key(self) -> str:
        """What `encode` depends on besides the record: changes exactly when its output may."""
        return f"language:{self.train_on}:{self.renderer.fingerprint}"

    def encode(self, record: Record) -> Group | None:
        """One sequence; None when nothing in it is trained.  Raises BadRow for a chat the template cannot render."""
        if isinstance(record, Text):
            tokens = self.renderer.text(record)
        else:
            assert isinstance(record, Chat), "rows are read for the task of language"
            tokens = self.renderer.chat(record, train_on=self.train_on)
        return Group((tokens,)) if tokens.weights.any() else None

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"lm": batch.weights_T.sum(dtype=torch.float64)}

    def sums(self, model: Model, batch: Batch) -> Terms:
        return token_terms("lm", model, batch)
