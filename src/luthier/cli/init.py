"""`luthier init`: a new, untrained model, ready for its pretraining."""

from __future__ import annotations

from pathlib import Path

from luthier.base.config import Config, Named
from luthier.base.console import Console
from luthier.base.errors import ConfigError
from luthier.data.config import DataConfig
from luthier.model.config import Shape


class InitConfig(Config):
    """A tokenizer from text, and a model with random weights."""

    data: DataConfig = DataConfig()
    """Text the tokenizer is trained on: what the model will be pretrained on, or a fair sample of it."""
    shape: Shape = Shape()
    """Kind and size of the model."""
    output_dir: Named = "base"
    """Folder the model is written to; it must be new or empty."""
    seed: int = 0
    """Seed of the weights and of #N draws."""


_COMMANDS = {
    "qwen2": "luthier pretrain",
    "bert": "luthier train --task_type mlm",
    "modernbert": "luthier train --task_type mlm",
    "t5": "luthier train --task_type span_corruption",
}


def init(options: InitConfig, console: Console) -> None:
    """Write the model and say what was made.

    Raises:
        ConfigError, DataError: no text, text that cannot be read, or a folder that is in use.
    """
    if not options.data.datasets:
        raise ConfigError("no text was named", where="--dataset", fix="Give at least one file or data set")
    from luthier.run.init import make_untrained

    folder = Path(options.output_dir).expanduser()
    parameters, seen = make_untrained(options.data, options.shape, folder, options.seed, console)
    for reason, count in sorted(seen.rejected.items()):
        console.warn(f"{count:,} rows left out: {reason}")
    console.say(
        f"{parameters:,} parameters; {options.shape.vocab_size:,} tokens from {seen.rows:,} rows, {seen.size:,} bytes"
    )
    command = _COMMANDS[options.shape.architecture]
    console.say(
        f"Train it:\n  {command} --model {folder} --train_type full --dataset {' '.join(options.data.datasets)}"
    )
    console.result(str(folder), path=str(folder), parameters=parameters, rows=seen.rows, bytes=seen.size)
