"""What objectives are made from, and what a run asks of one besides the engine's protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from luthier.base.console import Console
from luthier.base.records import Record, Task
from luthier.data import survey
from luthier.data.batch import Batch, Group
from luthier.data.config import DataConfig, Overlong
from luthier.data.loader import Vary
from luthier.data.plain import Plain
from luthier.data.render import Renderer
from luthier.data.tokens import Groups
from luthier.engine.mesh import Mesh
from luthier.engine.objective import Objective
from luthier.model.config import ModelConfig
from luthier.model.heads import Head
from luthier.model.load import Model
from luthier.objectives.findings import Findings

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
        """Chats as tokens.  Raises ModelError where the tokenizer cannot write any.

        The tokenizer takes the template over, which so travels with what is learned: served prompts are then the ones
        that were trained.
        """
        renderer = Renderer(self.tokenizer, template=self.model.template, template_args=self.model.template_args)
        self.tokenizer.chat_template = renderer.template
        return renderer

    @cached_property
    def plain(self) -> Plain:
        """Texts as tokens, without a template."""
        return Plain(self.tokenizer, self.max_length, self.overlong)

    def records(self, task: Task, *, training: bool = False) -> Iterator[Record]:
        """The records of all sets, or of those for training alone, as far as they can be read.  Raises DataError."""
        sets = self.data.datasets if training else (*self.data.datasets, *self.data.validation)
        return survey.records(self.data, sets, task)

    def first_fault(self, task: Task) -> str:
        """What is wrong with the first row that cannot be read for a task, to follow other words; empty if none is."""
        fault = survey.first_fault(self.data, (*self.data.datasets, *self.data.validation), task)
        return f": {fault}" if fault else ""


class Whole(Objective, Protocol):
    """What a run learns: one objective, or several."""

    @property
    def vary(self) -> Vary | None:
        """Done to each group whenever it is used; None leaves groups as they are."""
        ...

    @property
    def beside(self) -> Sequence[Model]:
        """Models that are held beside the one that is trained, once they are loaded."""
        ...

    def begin(self, sets: Sequence[Groups], console: Console) -> None:
        """Do what is done once, before the model is loaded; every process calls it."""
        ...

    def findings(self, outputs: Mapping[str, Tensor]) -> dict[str, Findings]:
        """What is to be written down of the outputs of a set, by the name of the task; empty where it is the only one.

        Nothing for objectives that give no row an answer of its own.
        """
        ...


class Learnable(Whole, Protocol):
    """An objective with all that a run has to know of it."""

    def encode(self, record: Record) -> Group | None:
        """The token sequences of one record that must travel together; None when nothing in it can be trained."""
        ...

    @property
    def task(self) -> Task:
        """What rows are read for."""
        ...

    @property
    def head(self) -> Head:
        """What the model must have on its backbone."""
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

    def files(self, model: Model) -> dict[str, str]:
        """Names and contents of what an artefact needs besides model and tokenizer."""
        ...


@dataclass(frozen=True)
class Part:
    """One of the objectives of a run, with the data that is its own."""

    name: str
    """Empty where it is the only one."""
    objective: Learnable
    data: DataConfig
    share: float | None = None
    """Its share of the samples, relative to the others'; None leaves it to the size of its sets."""


class Plainly:
    """What an objective does that needs nothing before a step or a run, and adds nothing to metrics and artefacts."""

    @property
    def beside(self) -> Sequence[Model]:
        """None."""
        return ()

    def prepare(self, model: Model, step: Sequence[Batch]) -> None:
        """Nothing: the loss needs no reference and no baseline."""

    def measure(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        """There are no metrics but sums."""
        return {}

    def begin(self, sets: Sequence[Groups], console: Console) -> None:
        """Nothing."""

    def findings(self, outputs: Mapping[str, Tensor]) -> dict[str, Findings]:
        """None."""
        return {}

    def files(self, model: Model) -> dict[str, str]:
        """None."""
        return {}
