"""The nano model: a tiny bilingual base model that comes with Luthier, so that everything can be tried offline.

`base/README.md` is its card; `recipes/nano` in the repository makes it.
"""

from __future__ import annotations

from pathlib import Path

NAME = "nano"
"""What the model is called in `--model nano`."""

TEXT = Path(__file__).parent / "text"
"""Two small sets to fine-tune it on: self_cognition.jsonl and chat.jsonl."""


def nano_folder() -> Path:
    """The folder of the bundled model, which plain transformers opens."""
    return Path(__file__).parent / "base"
