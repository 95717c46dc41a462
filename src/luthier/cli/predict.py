"""`luthier infer` with a model that classifies: rows of a file get their labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from luthier.base.console import Console
from luthier.base.errors import ConfigError
from luthier.model.config import ModelConfig


def predicts(
    model: ModelConfig,
    val_dataset: str | None,
    result_path: str | None,
    columns: Mapping[str, str],
    device: str,
    console: Console,
) -> bool:
    """Classify the rows of a file, if the model is one that does; whether it is.

    Args:
        columns: renamed in the rows; those that were renamed in training are too.

    Raises:
        ConfigError: it is, and no file was named.
    """
    from luthier.run.opening import device_of, split_named
    from luthier.run.predict import open_predictor, predict_file
    from luthier.run.result import find
    from luthier.run.specialist import skill_of

    config, named = split_named(model)
    if named:
        return False
    usable = find(config)
    skill = skill_of(usable)
    if skill.kind == "language":
        return False
    if skill.kind in ("vectors", "pairs"):
        raise ConfigError(
            f"this model {skill.words} and does not talk",
            where="--model",
            fix="luthier deploy serves it (/v1/embeddings, /v1/rerank, /v1/score), luthier eval judges it",
            code="other_skill",
        )
    if val_dataset is None or result_path is None:
        raise ConfigError(
            "this model classifies and does not talk",
            where="--val_dataset",
            fix="Give a file of texts as --val_dataset, and --result_path for what is predicted",
        )
    predictor = open_predictor(usable, device_of(device))
    with console.progress("Classifying rows") as bar:
        done = predict_file(val_dataset, Path(result_path), predictor, {**usable.columns, **columns}, bar.advance)
    console.result(done, summary=done, result_path=result_path)
    return True
