"""What every part of a run knows."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from luthier.base.console import Console
from luthier.base.errors import ConfigError
from luthier.base.rundir import RunDir
from luthier.data.loader import Share
from luthier.engine.mesh import Mesh
from luthier.model.load import Model, context_length
from luthier.model.method import virtual_tokens
from luthier.run.config import RunConfig


@dataclass(frozen=True, slots=True)
class Run:
    """What every build knows."""

    config: RunConfig
    console: Console
    """Silent on all processes but the leading one."""
    mesh: Mesh
    directory: RunDir
    max_length: int
    """Longest sequence in tokens, after what the model can hold."""

    @property
    def per_step(self) -> int:
        """Samples (or packs) of one optimizer step, over all devices."""
        return self.config.train.micro_batch * self.config.train.accumulation * self.mesh.world

    @property
    def split(self) -> bool:
        """Whether each process holds a part of the weights."""
        return self.config.train.shard == "full" and self.mesh.world > 1

    def share(self, micro_batch: int, model: Model) -> Share:
        """This process's micro-batches of so many full-length samples."""
        return Share(micro_batch * self.max_length, self.mesh.rank, self.mesh.world, padded=not model.packed)


def longest_held(config: RunConfig, tokenizer: PreTrainedTokenizerFast) -> int:
    """Tokens of the longest sequence that was asked for, or that the model holds behind the method's virtual tokens.

    Raises:
        ConfigError: these leave no room.
    """
    most, taken = context_length(config.model, tokenizer), virtual_tokens(config.method)
    if taken and taken >= most:
        raise ConfigError(
            f"{taken} virtual tokens leave no room for a text in a model of {most} tokens",
            where="--num_virtual_tokens",
            fix="Use fewer; 20 are usual",
        )
    return min(config.data.max_length, most - taken)
