"""What objectives are made from, and what a run asks of one besides the engine's protocol."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerFast

from luthier.base.records import Record, Task
from luthier.data import survey
from luthier.data.config import DataConfig, Overlong
from luthier.data.loader import Vary
from luthier.data.plain import Plain
from luthier.data.render import Renderer
from luthier.engine.mesh import Mesh
from luthier.engine.objective import Objective
from luthier.model.config import ModelConfig
from luthier.model.heads import Head

ALONE = Mesh(torch.device("cpu"))


@dataclass(frozen=True)
class Setting:
    """The tokenizer, the model's files and the data that an objective is for."""

    tokenizer: PreTrainedTokenizerFast
    model: ModelConfig
    data: DataConfig
    max_length: int
    """Longest sequence in tokens, after what the model can hold."""
    mesh: Mesh = ALONE
    """The processes of the run, for losses in which rows of all of them meet."""

    @property
    def overlong(self) -> Overlong:
        """What happens to longer ones."""
        assert self.data.overlong is not None, "the policy is filled in when the config is resolved"
        return self.data.overlong

    @cached_property
    def renderer(self) -> Renderer:
        """Chats as tokens.  Raises ModelError where the tokenizer cannot write any."""
        return Renderer(self.tokenizer, template=self.model.template, template_args=self.model.template_args)

    @cached_property
    def plain(self) -> Plain:
        """Texts as tokens, without a template."""
        return Plain(self.tokenizer, self.max_length, self.overlong)

    def records(self, task: Task, *, training: bool = False) -> Iterator[Record]:
        """The records of all sets, or of those for training alone, as far as they can be read.  Raises DataError."""
        sets = self.data.datasets if training else (*self.data.datasets, *self.data.validation)
        return survey.records(self.data, sets, task)


class Learnable(Objective, Protocol):
    """An objective with all that a run has to know of it."""

    @property
    def task(self) -> Task:
        """What rows are read for."""
        ...

    @property
    def head(self) -> Head:
        """What the model must have on its backbone."""
        ...

    @property
    def vary(self) -> Vary | None:
        """Done to each group whenever it is used; None leaves groups as they are."""
        ...

    @property
    def key(self) -> str:
        """What `encode` depends on besides the record: changes exactly when its output may."""
        ...

    @property
    def note(self) -> str | None:
        """What a user should know before training, if anything."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer, where answers are learned."""
        ...
