"""`luthier infer` with a model that classifies: rows of a file get their labels."""

from __future__ import annotations

from pathlib import Path

from luthier.base.console import Console
from luthier.base.errors import ConfigError
from luthier.model.config import ModelConfig


def predicts(
    model: ModelConfig, val_dataset: str | None, result_path: str | None, device: str, console: Console
) -> bool:
    """Classify the rows of a file, if the model is one that does; whether it is.

    Raises:
        ConfigError: it is, and no file was named.
    """
    import torch

    from luthier.model.heads import learned_head
    from luthier.run.opening import split_named
    from luthier.run.predict import open_predictor, predict_file
    from luthier.run.result import find

    config, named = split_named(model)
    if named:
        return False
    usable = find(config)
    if learned_head(usable.model) is None:
        return False
    if val_dataset is None or result_path is None:
        raise ConfigError(
            "this model classifies and does not talk",
            where="--val_dataset",
            fix="Give a file of texts as --val_dataset, and --result_path for what is predicted",
        )
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    predictor = open_predictor(usable, torch.device(chosen))
    with console.progress("Classifying rows") as bar:
        done = predict_file(val_dataset, Path(result_path), predictor, bar.advance)
    console.result(done, summary=done, result_path=result_path)
    return True
