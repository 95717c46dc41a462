"""Writing a target for each source with an encoder and a decoder: translations, summaries, answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from luthier.base.records import Message
from luthier.data.plain import Plain
from luthier.generate.passes import each
from luthier.model import methods
from luthier.model.heads import Head
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.objectives.config import Seq2Seq
from luthier.objectives.seq2seq import Translation
from luthier.objectives.spans import start_token
from luthier.run.result import Usable

_TOKENS = 4096
"""Of the sources that are run together."""


@dataclass(frozen=True)
class Writer:
    """A model that reads a source and writes a target, and the objective that says how sources are put."""

    model: Model
    objective: Translation

    def write(self, chats: Sequence[Sequence[Message]]) -> list[str]:
        """The target of each chat, its last answer left out."""
        groups = [self.objective.source(chat) for chat in chats]
        return each(self.model, groups, partial(self.objective.write, self.model), _TOKENS)


def open_writer(usable: Usable, device: torch.device, max_new_tokens: int | None) -> Writer:
    """Open a model with an encoder and a decoder, with the prefix and the search of its run.

    Args:
        max_new_tokens: most tokens of a target; None for as many as its run wrote.

    Raises:
        ConfigError, ModelError: it cannot be loaded.
    """
    trained = usable.trained.objective if usable.trained else None
    config = trained if isinstance(trained, Seq2Seq) else Seq2Seq()
    if max_new_tokens is not None:
        config = config.model_copy(update={"max_new_tokens": max_new_tokens})
    tokenizer = load_tokenizer(usable.tokenizer)
    model = load_model(usable.model, device, tokenizer=tokenizer, trained=False, head=Head("seq2seq"))
    methods.attach(model, usable.model.adapters)
    model.eval_mode()
    longest = min(usable.trained.data.max_length, model.max_length) if usable.trained else model.max_length
    start = start_token(usable.model)
    return Writer(model, Translation(config, Plain(tokenizer, longest, "truncate"), start))
