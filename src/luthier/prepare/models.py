"""Settings of verbs that let a local model judge rows, and what such a model is shown of a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from luthier.base.records import Json
from luthier.model.config import ModelConfig
from luthier.prepare.config import VerbConfig
from luthier.prepare.view import fields

_WORSE = ("rejected", "rejected_response", "rejected_messages", "neg", "negative")


class ModelVerbConfig(VerbConfig):
    """A verb with a model on this machine."""

    model: ModelConfig = ModelConfig()
    """The model that judges rows; nano is the tiny one that comes with Luthier."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    batch_tokens: int = Field(default=8192, ge=64)
    """Tokens the model works on at once; one longer row goes alone."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A row as a question and an answer to it; a plain text is an answer to nothing."""

    prompt: str
    answer: str


def asked(value: Mapping[str, Json]) -> Asked:
    """The last answer of a row (the better one of a pair) and all the text before it."""
    found = [
        field
        for field in fields(value)
        if field.text
        and not str(field.path[0]).lower().startswith("non_preferred")
        and str(field.path[0]).lower() not in _WORSE
    ]
    at = max((number for number, field in enumerate(found) if field.use == "answer"), default=None)
    if at is None:
        return Asked("", "\n".join(field.text for field in found))
    return Asked("\n".join(field.text for field in found[:at]), found[at].text)
