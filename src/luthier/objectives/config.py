"""Settings of what is learned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.base.config import Config


class Pretrain(Config):
    """Every token is trained; chats are rendered and trained whole."""

    type: Literal["pretrain"] = "pretrain"


class Sft(Config):
    """The assistant's tokens are trained, unless the data says otherwise."""

    type: Literal["sft"] = "sft"
    train_on: Literal["assistant", "last", "all"] = "assistant"
    """Turns that are trained: every assistant turn, the last one, or all turns."""


Objective = Annotated[Pretrain | Sft, Field(discriminator="type")]
