"""Settings of text generation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.base.config import Config

Backend = Literal["transformers", "pt", "vllm", "sglang", "lmdeploy"]
"""What runs a model; pt is another name for transformers, which runs in this process, the others are servers."""


class SamplingConfig(Config):
    """How the next token is chosen, and when to stop."""

    max_new_tokens: int = Field(default=2048, ge=1)
    """Most tokens of an answer; never more than fit behind the prompt."""
    temperature: float = Field(default=0.0, ge=0)
    """0 always takes the likeliest token; higher is more varied."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Choose among the likeliest tokens that together have this probability. 1: all."""
    top_k: int = Field(default=0, ge=0)
    """Choose among this many likeliest tokens. 0: all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Choose among tokens at least this many times as likely as the likeliest. 0: all."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Above 1, tokens of the prompt and of the answer so far become less likely."""
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Taken from the score of every token that the answer has already."""
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Taken from the score of a token each time that the answer has it."""
    stop: tuple[str, ...] = ()
    """An answer ends before any of these strings."""
    seed: int = 42
    """Seed of the choices when temperature is above 0."""


class EngineConfig(Config):
    """The process of vLLM, SGLang or LMDeploy."""

    engine_command: str | None = None
    """Its program: vllm, the python that has sglang, or lmdeploy. Unset: found on the path."""
    engine_args: str = ""
    """Further arguments of it, in one: --engine_args="--gpu-memory-utilization 0.8"."""
    engine_timeout: float = Field(default=900.0, gt=0)
    """Seconds until it must be ready."""
