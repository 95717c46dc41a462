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


class SeqCls(Config):
    """Each text, or pair of texts, is given a class, several classes, or a number."""

    type: Literal["seq_cls"] = "seq_cls"
    labels: tuple[str, ...] = ()
    """Names of the classes, in order. Unset: the model's own if they fit, else those found in the data."""
    num_labels: int | None = Field(default=None, ge=1)
    """How many labels there are, for data that does not show them all; 1 with numbers to predict."""
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = None
    """One class, several, or a number. Unset: what the labels look like."""
    class_weights: tuple[str, ...] = ()
    """Weight of each class in the loss, or 'balanced': rare classes count more."""
    focal_gamma: float = Field(default=0.0, ge=0.0)
    """Focal loss (Lin et al. 2017): what is already right counts less, the more the higher this is."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of each target that is spread over all classes."""
    threshold: float = Field(default=0.5, gt=0.0, lt=1.0)
    """With several classes: probability from which on a class is predicted."""


class TokenCls(Config):
    """Each word is given a tag: named entities in any scheme, parts of speech."""

    type: Literal["token_cls"] = "token_cls"
    labels: tuple[str, ...] = ()
    """Names of the tags, in order. Unset: the model's own if they fit, else those found in the data."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of each target that is spread over all tags."""


Objective = Annotated[Pretrain | Sft | SeqCls | TokenCls, Field(discriminator="type")]
