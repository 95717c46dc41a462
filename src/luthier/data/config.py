"""Settings of the data room: what is read, how rows are judged, how tokens become steps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from luthier.base.config import Config, Named

BadRows = Literal["strict", "drop", "fix"]
Overlong = Literal["truncate", "drop", "split"]


Sets = Annotated[tuple[Named, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
"""Data sets; a single one may stand alone."""


class DataConfig(Config):
    """Data sets and what happens to their rows."""

    datasets: Sets = ()
    """Training sets: [hf::|ms::]path-or-hub-id[:subset][#N]. An existing local path always wins over parsing."""
    validation: Sets = ()
    """Validation sets, in the same notation."""
    split_ratio: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the training rows held out for validation when no validation set is given."""
    interleave: tuple[float, ...] = ()
    """Sampling ratio of each training set; empty means all rows of all sets."""
    interleave_stop: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    """With ratios: stop an epoch when the first set runs out, or repeat sets until all have been seen."""
    replay: tuple[Named, ...] = ()
    """General sets whose rows are mixed into training so that less is forgotten, in the same notation."""
    replay_ratio: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of the training rows that are replayed ones."""
    columns: dict[str, str] = {}
    """Rename columns before the shape is recognised: {"their name": "our name"}."""
    hub: Literal["hf", "ms"] = "hf"
    """Hub for data-set ids without a prefix: Hugging Face or ModelScope."""
    bad_rows: BadRows = "fix"
    """A faulty row: 'strict' stops, 'drop' leaves it out, 'fix' repairs what has one safe repair and drops the rest."""
    max_rejected: float = Field(default=0.5, ge=0.0, le=1.0)
    """Refuse to train when a larger share of the rows was rejected."""
    min_rows: int = Field(default=1, ge=1)
    """Refuse to train on fewer usable rows."""
    max_row_bytes: int = Field(default=16 * 2**20, ge=1024)
    """A longer row is rejected before it is parsed."""
    system: str | None = None
    """System message for chats that bring none."""
    self_name: tuple[str, ...] = Field(default=(), max_length=2)
    """Replaces {{NAME}} in self-cognition rows: one value, or two (Chinese, English)."""
    self_author: tuple[str, ...] = Field(default=(), max_length=2)
    """Replaces {{AUTHOR}} in self-cognition rows: one value, or two (Chinese, English)."""
    max_length: int = Field(default=2048, ge=8)
    """Longest sequence in tokens; also the size of a pack. Capped by what the model can hold."""
    overlong: Overlong | None = None
    """Longer rows: 'truncate', 'drop' or 'split'. Unset: 'truncate' for chats, 'split' for pre-training."""
    packing: bool | None = None
    """A step counts packs of max_length tokens instead of samples. Unset: true for pre-training, else false."""
    shuffle: bool = True
    """Shuffle the training rows anew in each epoch."""
    order: Literal["random", "weighted", "short_first", "easy_first"] = "random"
    """random: each row once; weighted: rows as often as their column weight says, which then does not scale their
    loss; short_first, easy_first: from short to long, or by the column difficulty, in the first curriculum_epochs."""
    curriculum_epochs: int = Field(default=1, ge=1)
    """Epochs that go from easy to hard; later ones are in random order."""
    combine: bool = False
    """Join neighbouring texts and chats to sequences of up to max_length tokens, whose parts see what comes before."""
    streaming: bool = False
    """Tokenise while training instead of before; needs max_steps."""
    shuffle_buffer: int = Field(default=10_000, ge=1)
    """Rows held for shuffling when streaming."""
    tokenize_workers: int | None = Field(default=None, ge=1)
    """Processes that tokenise. Unset: one per core, or none for small sets."""
    loader_workers: int = Field(default=1, ge=0)
    """Threads that prepare batches ahead of the step; 0 prepares them in the step."""
    cache_dir: Named | None = None
    """Where tokenised data is kept. Unset: $LUTHIER_CACHE or ~/.cache/luthier."""

    @model_validator(mode="after")
    def _ratios_match_sets(self) -> DataConfig:
        if self.interleave and len(self.interleave) != len(self.datasets):
            raise ValueError(
                f"interleave has {len(self.interleave)} ratios for {len(self.datasets)} data sets; give one for each"
            )
        if any(ratio <= 0 for ratio in self.interleave):
            raise ValueError("every interleave ratio must be above 0")
        return self
