"""What every test on a CUDA device needs before the device is first used, and the small runs of some."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Matrix products repeat themselves bit for bit only with a workspace of fixed size.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture
def words_of_a_run(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> Callable[..., tuple[list[str], Path]]:
    """The flags of a small run over 64 chats, and the new folder that it is to write to."""
    model = tiny_model_dir("qwen2", hidden_size=256, head_dim=64, intermediate_size=512, initializer_range=0.05)
    data = tmp_path / "chats.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for number in range(64):
            question, answer = f"{number} 加一等于多少？", f"It is {number + 1}. " * (1 + number % 5)
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
    names = iter(range(100))

    def words(**flags: Any) -> tuple[list[str], Path]:
        output = tmp_path / f"out-{next(names)}"
        settings = {
            "model": model, "dataset": data, "output_dir": output, "cache_dir": tmp_path / "cache", "max_length": 128,
            "per_device_train_batch_size": 2, "logging_steps": 1, "report_to": "none", "device": "cuda", **flags,
        }  # fmt: skip
        return [word for name, value in settings.items() for word in (f"--{name}", str(value))], output

    return words
