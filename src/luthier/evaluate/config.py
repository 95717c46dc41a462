"""Settings of evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.base.config import Config

Method = Literal["likelihood", "generation"]


class SetConfig(Config):
    """How one data set is read and asked, as `--dataset_args` gives it."""

    local_path: str | None = None
    """File or folder. Unset: the set's usual place below --data_root."""
    subset_list: tuple[str, ...] = ()
    """Parts to evaluate. Unset: all that are there."""
    split: str | None = None
    """Part of the data by its name in files, for example test. Unset: the usual one."""
    few_shot_num: int = Field(default=0, ge=0)
    """Worked examples in front of each question."""
    limit: int | None = Field(default=None, ge=1)
    """Questions of each subset, the first ones. Unset: --eval_limit."""
    method: Method | None = None
    """How options are chosen: by their likelihood, or read from a generated answer. Unset: --method."""
    options_as: Literal["letter", "text"] = "letter"
    """The options are shown and their letters scored, or not shown and their texts scored."""
    prompt_template: str | None = None
    """Text around the question, with {question}, {choices}, {letters}, {context} where the set has them."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of a generated answer. Unset: what the set needs."""
    metric_list: tuple[str, ...] = ()
    """Metrics to report. Unset: all."""
