"""`luthier soup`: models averaged weight by weight."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from luthier.base.config import Config, Named
from luthier.base.console import Console
from luthier.base.errors import ConfigError
from luthier.model.config import ModelConfig


class SoupConfig(Config):
    """A base, and what was tuned from it."""

    model: ModelConfig = ModelConfig()
    """The base model."""
    tuned: tuple[Named, ...] = ()
    """Runs, checkpoints, models or adapters that were tuned from it."""
    weights: tuple[float, ...] = ()
    """Weight of each. Unset: all the same."""
    share: float = Field(default=1.0, ge=0.0, le=1.0)
    """Share of the tuned ones; the rest is the base. Between 0 and 1 less of the base is forgotten (WiSE-FT)."""
    output_dir: Named = "soup"
    """Folder the model is written to; it must be new or empty."""

    @model_validator(mode="after")
    def _one_weight_each(self) -> SoupConfig:
        if self.weights and (len(self.weights) != len(self.tuned) or min(self.weights) <= 0):
            raise ValueError("weights needs one number above 0 for each tuned model")
        return self


def soup(options: SoupConfig, console: Console) -> None:
    """Average and say where the result is.

    Raises:
        ConfigError: nothing was named, models that do not fit, or a folder that is in use.
    """
    if not options.model.path or not options.tuned:
        raise ConfigError("a base and what was tuned from it are needed", where="--model, --tuned")
    folder = Path(options.output_dir).expanduser()
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError("this folder is in use", where=str(folder), fix="Name a new one with --output_dir")
    from luthier.run.soup import average

    weights = options.weights or (1.0,) * len(options.tuned)
    head = average(options.model, options.tuned, weights, options.share, folder)
    if head.kind == "causal":
        console.say(f"Talk to it:\n  luthier infer --model {folder}")
    else:
        console.say(f"Judge it:\n  luthier eval --model {folder} --eval_dataset ROWS.jsonl")
    console.result(str(folder), path=str(folder))
